"""Counterfactual attention: maps and weights that are reversed, evened out or left to chance."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmfix.methods.logits.branch_prompts import seeded

# Odd numbers without a pattern, by which seed, layer, head, row and key are told apart, and of a mixing
# function (the finalizer of MurmurHash3), as signed integers of 64 bits.
_STRIDES = (
    -7046029254386353131,
    -4417276706812531889,
    1609587929392839161,
    -8796714831421723037,
    2870177450012600261,
)
_MIXERS = (-49064778989728563, -4265267296055464877)


def edited_map(weights: Tensor, kind: str, pixels: Tensor, seed: int) -> Tensor:
    """A map of the vision encoder made counterfactual (arXiv 2410.04780, released code).

    Args:
        weights: of all its tokens, `(heads, tokens, tokens)` float32.
        kind: "shuffle": its entries in an order by chance; "random": numbers in [0, 2); "uniform": the mean
            of each head; "reversed": the maximum of each head minus the map.
        pixels: of the image, on which chance depends.
        seed: and on this.

    Returns:
        In the form of `weights`.
    """
    if kind == "uniform":
        return weights.mean(dim=(1, 2), keepdim=True).expand_as(weights)
    if kind == "reversed":
        return weights.amax(dim=(1, 2), keepdim=True) - weights
    generator = seeded(pixels, seed)
    if kind == "random":
        return 2 * torch.rand(weights.shape, generator=generator).to(weights)
    order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
    return weights.flatten()[order].view_as(weights)


def edited_weights(
    layer: int, rows: Tensor, weights: Tensor, seen: Tensor, *, kind: str, seed: int, padding: Tensor
) -> Tensor:
    """Weights of a layer of the language model made counterfactual (arXiv 2410.04780).

    Args:
        layer: 0-based.
        rows: places of the rows, `(rows,)`.
        weights: `(batch, heads, rows, keys)` float32.
        seen: keys that a row sees, `(batch or 1, rows, keys)` bool.
        kind: "reversed": the maximum of a row minus its weights; "reversed_normalised": the same, divided by
            its sum, unless this is 0; "uniform": equal weights; "random": numbers in [0, 1) divided by their
            sum, which depend on layer, head, row and key alone.
        seed: of "random".
        padding: tokens before the first real one, `(batch,)`.

    Returns:
        In the form of `weights`, 0 at keys that are not seen.
    """
    visible = seen[:, None].to(weights)
    if kind == "uniform":
        values = visible.expand_as(weights)
    elif kind == "random":
        values = visible * chance(layer, rows, weights, seed=seed, padding=padding)
    else:
        own = weights * visible
        values = visible * (own.amax(dim=-1, keepdim=True) - own)
    if kind == "reversed":
        return values
    total: Tensor = values.sum(dim=-1, keepdim=True)
    return values / total.clamp_min(torch.finfo(values.dtype).tiny)


def chance(layer: int, rows: Tensor, like: Tensor, *, seed: int, padding: Tensor) -> Tensor:
    """Numbers in [0, 1) for each head, row and key, the same in every batch and with every cache.

    Args:
        layer: 0-based.
        rows: places of the rows, `(rows,)`.
        like: `(batch, heads, rows, keys)`.
        seed: 0 or more.
        padding: tokens before the first real one, `(batch,)`.

    Returns:
        In the form of `like`, float32.
    """
    device = like.device
    heads, keys = (torch.arange(like.shape[axis], device=device) for axis in (1, 3))
    padding = padding.to(device)[:, None, None, None]
    key = keys - padding
    row = rows.to(device)[:, None] - padding
    state = seed * _STRIDES[0] + (layer + 1) * _STRIDES[1]
    state = (state + 2**63) % 2**64 - 2**63
    mixed = state + heads[:, None, None] * _STRIDES[2] + row * _STRIDES[3] + key * _STRIDES[4]
    for factor in _MIXERS:
        mixed = (mixed ^ _shifted(mixed, 33)) * factor
    numbers: Tensor = _shifted(mixed ^ _shifted(mixed, 33), 40).float() / 2**24
    return numbers


def _shifted(values: Tensor, places: int) -> Tensor:
    """Bits of 64-bit integers moved to the right, zeros after them."""
    shifted: Tensor = values >> places
    return shifted & ((1 << (64 - places)) - 1)
