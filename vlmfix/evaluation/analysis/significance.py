"""Tests of a difference between two methods, and the correction for several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import SEED, totals

SWAPS = 9_999
EQUAL = 1e-12  # what differs by less, differs by the order of summation

_EXACT_UP_TO = 12  # images that differ: 4,096 patterns
_SWAPS_AT_ONCE = 2**21  # bounds the memory of a block of swaps


@dataclass(frozen=True)
class SwapTest:
    """The result of a paired test that exchanges two methods image by image.

    Args:
        p: the two-sided p value.
        images: number of images with a share in the metric.
        differing: on how many of these the two methods differ.
    """

    p: float
    images: int
    differing: int


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p of McNemar's test.

    Args:
        better: number of samples that only the second of two methods has right.
        worse: number of samples that only the first one has right.
    """
    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5))) if better + worse else 1.0


def swap_test(metric: Metric, other: Metric, clusters: np.ndarray) -> SwapTest:
    """Whether a metric of two methods differs by more than chance: their counts are exchanged by image.

    If the methods are equally good, each image could as well have given the counts of one to the other. With
    one sample an image and accuracy as the metric, this is McNemar's exact test. See `swapped` for p.

    Args:
        metric: of one method.
        other: the same metric of the other method on the same samples. A sample that one of them failed on
            has to be left out of both.
        clusters: label of the image of each sample, `(samples,)`.

    Returns:
        The test; p is 1 where a denominator is zero.

    Raises:
        ValueError: the two metrics are not of the same ratios and samples.
    """
    if metric.parts.shape != other.parts.shape or metric.parts.shape[1] != len(clusters):
        raise ValueError(
            f"the swap test needs two metrics of the same ratios and samples; these have shapes "
            f"{metric.parts.shape} and {other.parts.shape} at {len(clusters)} labels of images"
        )
    if not metric.is_defined or not other.is_defined:
        return SwapTest(1.0, 0, 0)
    if metric.value < other.value:  # which of the two is called the first is no matter
        metric, other = other, metric
    ratios = len(metric.parts)
    own, others = (totals(np.concatenate([each.parts, each.wholes]), clusters) for each in (metric, other))
    images = int((own[ratios:] + others[ratios:] > 0).any(axis=0).sum())
    change = others - own
    change = change[:, (change != 0).any(axis=0)]
    change = change[:, np.lexsort(change)]  # nothing depends on what images are called
    own_sums, other_sums = own.sum(axis=1), others.sum(axis=1)

    def differences(swaps: np.ndarray) -> np.ndarray:
        moved = swaps @ change.T
        changed: np.ndarray = _ratios(own_sums + moved) - _ratios(other_sums - moved)
        return changed

    return SwapTest(swapped(differences, change.shape[1]), images, change.shape[1])


def swapped(differences: Callable[[np.ndarray], np.ndarray], differing: int) -> float:
    """How often the difference is as large when the two methods are exchanged at random, image by image.

    Up to 12 images that differ, all patterns of exchanges are gone through and p is the share of these;
    beyond, 9,999 random ones and the one observed.

    Args:
        differences: gives the difference under each of several patterns, `(patterns, differing)` float, 1.0
            where an image is exchanged -> `(patterns,)`; NaN, where there is none, counts as large.
        differing: number of images where an exchange changes anything.
    """
    observed = abs(float(differences(np.zeros((1, differing)))[0]))
    large = count = 0
    for swaps in _patterns(differing):
        large += int((~(np.abs(differences(swaps)) < observed - EQUAL)).sum())
        count += len(swaps)
    return large / count if differing <= _EXACT_UP_TO else (large + 1) / (count + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted so that the chance of any false mark in a table stays at the level (Holm 1979).

    Args:
        p_values: of all methods of one table on its headline metric, in any order.

    Returns:
        The adjusted values in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, dtype=float)[order]
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(each) for each in adjusted]


def _patterns(differing: int) -> Iterator[np.ndarray]:
    """Blocks of exchanges, `(block, differing)` float of zeros and ones."""
    if differing <= _EXACT_UP_TO:
        numbers = np.arange(2**differing)[:, None]
        yield (numbers >> np.arange(differing) & 1).astype(float)
        return
    generator = np.random.default_rng(SEED)
    size = max(1, _SWAPS_AT_ONCE // differing)
    for start in range(0, SWAPS, size):
        yield generator.integers(2, size=(min(size, SWAPS - start), differing)).astype(float)


def _ratios(sums: np.ndarray) -> np.ndarray:
    """Mean ratio, parts then wholes `(patterns, 2 * ratios)` -> `(patterns,)`; NaN with a zero whole."""
    parts, wholes = np.split(sums, 2, axis=1)
    ratios: np.ndarray = np.divide(parts, wholes, out=np.full_like(parts, np.nan), where=wholes > 0)
    means: np.ndarray = ratios.mean(axis=1)
    return means
