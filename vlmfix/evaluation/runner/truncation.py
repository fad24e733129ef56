"""Captions cut to equal lengths: how much of a gain is that a method says less."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


def limits(lengths: Sequence[int], targets: Sequence[int], *, mode: str = "per_image") -> list[int]:
    """How many tokens of each caption are left when captions are cut to the lengths of others.

    Args:
        lengths: of the captions that are cut, in tokens.
        targets: of the others, image by image.
        mode: "per_image": each to the length of its counterpart; "mean": all to one length, the smallest at
            which their mean is not below that of the others.

    Raises:
        ValueError: another mode, or numbers of captions that differ.
    """
    if len(lengths) != len(targets):
        raise ValueError(f"{len(lengths)} lengths and {len(targets)} targets; there must be as many")
    if mode == "per_image":
        return [min(pair) for pair in zip(lengths, targets, strict=True)]
    if mode == "mean":
        common = mean_limit(lengths, fmean(targets)) if targets else 0
        return [min(length, common) for length in lengths]
    raise ValueError(f"mode is {mode!r}; it must be per_image or mean")


def mean_limit(lengths: Sequence[int], mean: float) -> int:
    """The smallest limit at which the mean of cut lengths is at least `mean`; the longest, if none is."""
    for limit in range(max(lengths, default=0)):
        if fmean(min(length, limit) for length in lengths) >= mean:
            return limit
    return max(lengths, default=0)
