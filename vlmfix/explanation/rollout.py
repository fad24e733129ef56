"""Attention rolled out through layers, and the contrast of two such maps (DecAF, arXiv 2510.19592)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

HEAD_WEIGHTINGS = ("vision_max", "mean", "max")
"""Of heads in the rollout: by their sharpest look at the image, alike, or their largest weight."""

_BINS = 256


def head_looks(weights: Tensor, image_tokens: Tensor) -> Tensor:
    """How sharply heads look at the image: mean over the rows of the largest weight on an image token.

    Args:
        weights: `(heads, rows, keys)`.
        image_tokens: `(keys,)` bool.

    Returns:
        `(heads,)`.
    """
    return weights[..., image_tokens].amax(dim=-1).mean(dim=-1)


def merged_heads(weights: Tensor, head_weights: Tensor) -> Tensor:
    """Weighted mean over the heads, `(rows, keys)`; rows are not normalised again.

    Args:
        weights: `(heads, rows, keys)`.
        head_weights: the largest is 1, `(heads,)`.
    """
    return torch.einsum("h,hrk->rk", head_weights, weights) / len(head_weights)


def roll_out(rows: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Where the information of rows comes from, through several layers with their residual connections.

    Args:
        rows: positions, `(rows,)` int64.
        layers: `merged_heads` of all rows of each layer from the first to the last, `(tokens, tokens)`.

    Returns:
        Rows of the rollout, `(rows, tokens)`.
    """
    result = torch.nn.functional.one_hot(rows, layers[-1].shape[-1]).to(layers[-1])
    for merged in reversed(layers):
        result = 0.5 * (result @ merged) + 0.5 * result
    return result


def smooth(grid: np.ndarray, *, sigma: float = 1.0, kernel: int = 7) -> np.ndarray:
    """A map `(rows, columns)` under a Gaussian of `kernel` cells a side, mirrored at its border."""
    weights = gaussian(sigma, kernel)
    for axis in (0, 1):
        grid = ndimage.correlate1d(grid, weights, axis=axis, mode="mirror")
    return grid


def gaussian(sigma: float, kernel: int) -> np.ndarray:
    """Weights of a Gaussian on `kernel` cells, an odd number, which sum to 1."""
    places = np.arange(kernel) - kernel // 2
    heights = np.exp(-0.5 * (places / sigma) ** 2)
    weights: np.ndarray = heights / heights.sum()
    return weights


def contrast(of_object: np.ndarray, of_background: np.ndarray) -> np.ndarray:
    """What a map has beyond another one of the same scale, stretched to [0, 1]; all zero where it is flat."""
    difference = np.clip(of_object - of_background, 0, 1)
    low, high = difference.min(), difference.max()
    return np.zeros_like(difference) if high == low else (difference - low) / (high - low)


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that parts values in [0, 1] best into two classes, by 256 bins: the centre of the lowest
    of the best bins; what lies above it belongs to the upper class."""
    counts, _ = np.histogram(values, bins=_BINS, range=(0, 1))
    centres = (np.arange(_BINS) + 0.5) / _BINS
    below, sums = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[np.nanargmax(np.where(np.isfinite(apart), apart, 0))])
