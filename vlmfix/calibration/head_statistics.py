"""Statistics of head importance: which heads to list, how many, and whether the list means anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Head = tuple[int, int]
"""Layer and query head, 0-based."""


class Contrast(NamedTuple):
    """Effects on the tokens of hallucinated objects, against those on the tokens of correct ones.

    Args:
        on_hallucinated: mean effects on hallucinated objects.
        on_correct: mean effects on correct objects.
        difference: of the two.
        t: of Welch, unbiased variances; NaN for a single token of a kind.
    """

    on_hallucinated: Tensor
    on_correct: Tensor
    difference: Tensor
    t: Tensor


def first_order_effects(score: Callable[[Tensor], Tensor], gates: Tensor) -> tuple[Tensor, Tensor]:
    """How far scores fall without each single head, to the first order (arXiv 1905.10650).

    That is the derivative of the score by the gate on the head, where all gates are 1. It is exact where the
    score is linear in the gate.

    Args:
        score: of each row under gates; the rows do not mix.
        gates: ones, `(rows, layers, heads)`.

    Returns:
        The estimates, `(rows, layers, heads)`, and the scores, `(rows,)`; without a graph.
    """
    with torch.enable_grad():
        gates = gates.detach().requires_grad_()
        scores = score(gates)
        (slopes,) = torch.autograd.grad(scores.sum(), gates)
    return slopes, scores.detach()


def contrast(effects: Tensor, hallucinated: Tensor) -> Contrast:
    """Compare effects on hallucinated objects with those on correct ones (AD-HH, ICLR 2025).

    Args:
        effects: on each object token, `(tokens, ...)`.
        hallucinated: which of the objects are not there, `(tokens,)` bool; some are, and some are not.
    """
    wrong, right = effects[hallucinated], effects[~hallucinated]
    difference = wrong.mean(dim=0) - right.mean(dim=0)
    variance = sum(each.var(dim=0) / len(each) if len(each) > 1 else torch.nan for each in (wrong, right))
    return Contrast(wrong.mean(dim=0), right.mean(dim=0), difference, difference / variance**0.5)


def ranking(differences: Tensor) -> list[int]:
    """Indices of differences `(heads,)`, the largest first; what is equal to seven places stays in order."""
    order = differences.double().round(decimals=7).argsort(descending=True, stable=True)
    indices: list[int] = order.tolist()
    return indices


def resampled_differences(
    effects: Tensor, hallucinated: Tensor, images: Tensor, *, draws: int = 1000, seed: int = 0
) -> Tensor:
    """Differences as in `contrast`, of images drawn anew with replacement.

    Args:
        effects: on each object token, `(tokens, ...)`.
        hallucinated: `(tokens,)` bool.
        images: number of the image of each token, `(tokens,)` int64.

    Returns:
        `(draws, ...)` float64, less the draws that lack objects of a kind.
    """
    generator = torch.Generator().manual_seed(seed)
    _, images = images.unique(return_inverse=True)
    count = int(images.max()) + 1
    drawn = torch.randint(count, (draws, count), generator=generator)
    times = torch.zeros(draws, count, dtype=torch.double)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.double))
    weights = times[:, images]  # of each token
    wrong, right = (weights * each for each in (hallucinated, ~hallucinated))
    complete = (wrong.sum(dim=1) > 0) & (right.sum(dim=1) > 0)
    wrong, right = (each[complete] / each[complete].sum(dim=1, keepdim=True) for each in (wrong, right))
    flat = effects.double().flatten(1)
    found: Tensor = wrong @ flat - right @ flat
    return found.view(-1, *effects.shape[1:])


def choose_count(
    counts: Sequence[int],
    gains: Sequence[float],
    errors: Sequence[float],
    correct_drops: Sequence[float],
    *,
    max_correct_drop: float,
) -> int:
    """How many heads to keep: the fewest whose gain is within one standard error of the best one.

    Args:
        counts: of heads silenced together, ascending, from 0 on, where nothing is gained or lost.
        gains: how much more the probability of hallucinated objects falls than that of correct ones.
        errors: standard errors of the gains.
        correct_drops: how far the probability of correct objects falls.
        max_correct_drop: counts with more than that are out.
    """
    allowed = [index for index, drop in enumerate(correct_drops) if drop <= max_correct_drop]
    best = max(allowed, key=lambda index: gains[index])
    return next(counts[index] for index in allowed if gains[index] >= gains[best] - errors[best])


def random_sets(heads: Sequence[Head], shape: tuple[int, int], *, draws: int, seed: int = 0) -> Tensor:
    """Other heads, drawn at random, as many of each layer as a list has, or all that the layer has left.

    Args:
        heads: the list, of which none is drawn.
        shape: layers, and heads of a layer.

    Returns:
        `(draws, layers, heads)` bool.
    """
    generator = torch.Generator().manual_seed(seed)
    listed = head_mask([heads], shape)[0]
    order = torch.rand(draws, *shape, generator=generator).masked_fill(listed, 2.0).argsort(dim=2)
    rank = order.argsort(dim=2)
    return (rank < listed.sum(dim=1)[:, None]) & ~listed


def random_set_p(gain: float, random_gains: Sequence[float]) -> float:
    """Share of random lists, with the real one among them, that gain at least as much as the real one."""
    return (1 + sum(each >= gain for each in random_gains)) / (1 + len(random_gains))


def head_mask(lists: Sequence[Sequence[Head]], shape: tuple[int, int]) -> Tensor:
    """Lists of heads as `(lists, layers, heads)` bool."""
    mask = torch.zeros(len(lists), *shape, dtype=torch.bool)
    for own, heads in zip(mask, lists, strict=True):
        for layer, head in heads:
            own[layer, head] = True
    return mask


def common(first: Sequence[Head], second: Sequence[Head], count: int) -> int:
    """Number of heads that the first `count` of two rankings have in common."""
    return len(set(first[:count]) & set(second[:count]))


def shares_in_best(differences: Tensor, count: int) -> Tensor:
    """Share of resamples `(draws, heads)` in which each head is among the best, `(heads,)`."""
    best = torch.zeros_like(differences).scatter_(1, differences.topk(count).indices, 1.0)
    return best.mean(dim=0)
