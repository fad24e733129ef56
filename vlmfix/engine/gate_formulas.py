"""Formulas of gates: signals, shapes, and the blend of an edit with what it got."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlmfix.engine.kl import RULED_OUT


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next token over the logarithm of the vocabulary size, `(batch,)` in [0, 1].

    Args:
        logits: `(batch, vocabulary)`.
    """
    nats: Tensor = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)
    return nats / math.log(logits.shape[-1])


def margin(logits: Tensor) -> Tensor:
    """1 less the difference between the two largest probabilities, `(batch,)` in [0, 1]."""
    largest = logits.softmax(dim=-1).topk(2, dim=-1).values
    return 1 - (largest[:, 0] - largest[:, 1])


def top1(logits: Tensor) -> Tensor:
    """1 less the largest probability, `(batch,)` in [0, 1]."""
    return 1 - logits.softmax(dim=-1).amax(dim=-1)


def disagreement(logits: Tensor, branch: Tensor) -> Tensor:
    """Sum of the absolute differences of probabilities, `(batch,)` in [0, 2]."""
    return (logits.softmax(dim=-1) - branch.softmax(dim=-1)).abs().sum(dim=-1)


def ramp(signal: Tensor, low: float, high: float, *, below: bool = False) -> Tensor:
    """Openings: 0 up to `low`, 1 from `high` on, linear in between; a step where both are one number.

    Args:
        signal: `(batch,)`.
        low: lower bound.
        high: upper bound.
        below: turned: 1 up to `low`, 0 from `high` on; at a step, 1 below it alone.
    """
    if low == high:
        return ((signal < low) if below else (signal > low)).float()
    risen = ((signal - low) / (high - low)).clamp(0, 1)
    return 1 - risen if below else risen


def uniform(tokens: Tensor, step: int, seed: int) -> Tensor:
    """Numbers in [0, 1) that depend on token, step and seed alone, `(batch,)` float32.

    Args:
        tokens: `(batch,)` int64.
        step: 0 or more.
        seed: below 2**31.
    """
    mixed = tokens + 1
    for number in (step, seed):
        mixed = _mixed(mixed + (number + 1) * 0x9E3779B9)
    return (mixed >> 8).float() / 2**24


def _mixed(bits: Tensor) -> Tensor:
    """A hash of the lower 32 bits of `bits`, int64."""
    bits = bits & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def blend(before: Tensor, after: Tensor, opening: Tensor) -> Tensor:
    """`before + opening * (after - before)`, to the bit `before` at 0 and `after` at 1.

    Args:
        before: what an edit got.
        after: what it made of it.
        opening: in a form that broadcasts to both.
    """
    mixed = (before + opening * (after - before)).to(after.dtype)
    return torch.where(opening <= 0, before, torch.where(opening >= 1, after, mixed))


def blend_logits(before: Tensor, after: Tensor, opening: Tensor) -> Tensor:
    """`blend` of logits: tokens that the edit rules out are ruled out as soon as the gate opens at all, and
    impossible ones stay impossible in between.

    Args:
        before: `(batch, vocabulary)`.
        after: in the same form; ruled out is what lies `RULED_OUT` nats below the others, or is infinite.
        opening: `(batch,)`.
    """
    kept = after > after.amax(dim=-1, keepdim=True) - RULED_OUT / 2
    mixed = before + opening[:, None] * (after - before)
    mixed = torch.where(kept, mixed, after).masked_fill(before == -torch.inf, -torch.inf)
    opening = opening[:, None]
    return torch.where(opening <= 0, before, torch.where(opening >= 1, after, mixed))
