"""Maps compared with masks of objects, each figure beside what chance gives, and curves with their areas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage, stats

from vlmfix.explanation.rollout import otsu_threshold

TOLERANCE = 15.0
"""Of the pointing game, in pixels of the picture."""


class Figure(NamedTuple):
    """A figure and what chance gives."""

    value: float
    chance: float


def pointing(saliency: np.ndarray, mask: np.ndarray, *, tolerance: float = TOLERANCE) -> Figure:
    """Whether the highest pixel of a map hits an object (pointing game, arXiv 1608.00507).

    A pixel of the object has to lie closer than `tolerance`; the first in raster order counts of equal ones.

    Args:
        saliency: `(height, width)`, NaN where no token sees the picture.
        mask: of the object, `(height, width)` bool.

    Returns:
        1 or 0, and the share of pixels that would hit.
    """
    near = ndimage.distance_transform_edt(~mask) < max(tolerance, 1e-9)
    return Figure(float(near.ravel()[np.nanargmax(saliency)]), float(near[_seen(saliency)].mean()))


def energy(saliency: np.ndarray, mask: np.ndarray) -> Figure:
    """Share of a map inside an object (Score-CAM, arXiv 1910.01279), and the object's share of the area."""
    seen = _seen(saliency)
    return Figure(
        float(saliency[mask & seen].sum() / saliency[seen].sum()), float((mask & seen).sum() / seen.sum())
    )


def attention_iou(saliency: np.ndarray, mask: np.ndarray) -> Figure:
    """Overlap of a map and a mask that both sum to 1 (after Attention-IoU, arXiv 2503.19846; reconstruction),
    and that of the uniform map."""
    seen = _seen(saliency)
    inside = mask[seen] / mask[seen].sum()

    def overlap(values: np.ndarray) -> float:
        own = values / values.sum()
        return float(np.minimum(own, inside).sum() / np.maximum(own, inside).sum())

    return Figure(overlap(saliency[seen]), overlap(np.ones(seen.sum())))


def iou(chosen: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of two boolean masks."""
    return float((chosen & mask).sum() / (chosen | mask).sum())


def iou_otsu(saliency: np.ndarray, mask: np.ndarray) -> float:
    """IoU of what Otsu's threshold leaves of a map; 0 of a flat one."""
    low, high = np.nanmin(saliency), np.nanmax(saliency)
    if high == low:
        return 0.0
    seen = _seen(saliency)
    scaled = np.where(seen, (saliency - low) / (high - low), 0)
    return iou(scaled > otsu_threshold(scaled[seen]), mask)


def iou_area(saliency: np.ndarray, mask: np.ndarray) -> float:
    """IoU of as many of the highest pixels as the object has; the first in raster order of equal ones."""
    order = np.argsort(-np.nan_to_num(saliency, nan=-np.inf).ravel(), kind="stable")
    chosen = np.zeros(mask.size, dtype=bool)
    chosen[order[: mask.sum()]] = True
    return iou(chosen.reshape(mask.shape), mask)


def auroc(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Probability that a map is higher at a pixel of the object than at another, ties half; .5 is chance."""
    seen = _seen(saliency)
    inside = mask[seen]
    ranks = stats.rankdata(saliency[seen])
    positives, negatives = inside.sum(), (~inside).sum()
    return float((ranks[inside].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def judge(
    saliency: np.ndarray, mask: np.ndarray, *, ignored: np.ndarray | None = None, tolerance: float = TOLERANCE
) -> dict[str, Figure] | None:
    """All figures of a map.

    Args:
        saliency: `(height, width)`, not negative, NaN where no token sees the picture.
        mask: of the object, `(height, width)` bool.
        ignored: pixels that are neither in nor out, such as crowds, likewise; None: none.

    Returns:
        By name; chance is that of a pixel at random, of the uniform map, of the whole picture as region
        (Otsu) and of as many random pixels (area). None where the map is flat or not a number, or the object
        fills all or nothing of what the model sees.
    """
    if ignored is not None:
        saliency = np.where(ignored & ~mask, np.nan, saliency)
    seen = _seen(saliency)
    if not seen.any() or saliency[seen].max() == saliency[seen].min() or len({*mask[seen]}) < 2:
        return None
    share = float(mask[seen].mean())
    return {
        "pointing": pointing(saliency, mask, tolerance=tolerance),
        "energy": energy(saliency, mask),
        "attention_iou": attention_iou(saliency, mask),
        "iou_otsu": Figure(iou_otsu(saliency, mask), share),
        "iou_area": Figure(iou_area(saliency, mask), share / (2 - share)),
        "auroc": Figure(auroc(saliency, mask), 0.5),
    }


def centred_gaussian(size: tuple[int, int]) -> np.ndarray:
    """The map of somebody who always looks at the middle, `(height, width)`: a Gaussian with a standard
    deviation of a quarter of each side.

    Args:
        size: width and height.
    """
    across, down = (
        np.exp(-0.5 * (((np.arange(side) + 0.5) / side - 0.5) * 4) ** 2) for side in (size[0], size[1])
    )
    result: np.ndarray = down[:, None] * across
    return result


def area_under_curve(values: Sequence[float]) -> float:
    """Area under a curve of evenly spaced values from 0 to 1, by trapezoids (RISE, arXiv 1806.07421)."""
    return (sum(values) - values[0] / 2 - values[-1] / 2) / (len(values) - 1)


def _seen(saliency: np.ndarray) -> np.ndarray:
    seen: np.ndarray = ~np.isnan(saliency)
    return seen
