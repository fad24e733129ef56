"""Estimates with intervals, sums by image, and ratios on resampled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlmfix.evaluation.analysis.results import Metric

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0

TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_WEIGHTS_AT_ONCE = 2**21  # bounds the memory of a block of resamples
_DECIMALS = 12  # what lies below depends on the order of summation, not on the data


@dataclass(frozen=True)
class Estimate:
    """A value, or a difference of two, with its 95 % interval.

    Args:
        value: the point estimate on all data.
        low: end of the interval; None where no interval exists, as with a single cluster, or where the data
            show no error to make one from.
        high: the other end.
        error: the standard error; None with a single cluster.
        samples: number of samples that count.
        clusters: number of images that these are of.
        source: how the interval was made, "Wilson", "adjusted", "sandwich" or "bootstrap"; "undefined" for a
            zero denominator.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None
    samples: int
    clusters: int
    source: str

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Spread:
    """One figure over the repeats of a task: its values, their mean and standard deviation (n - 1)."""

    values: tuple[float, ...]
    mean: float
    deviation: float


def draw_clusters(count: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, with replacement, in each resample.

    Args:
        count: number of clusters; equal counts and seeds give equal draws.
        resamples: how many there are in all.
        seed: of the random generator.

    Yields:
        Blocks of resamples, `(block, count)` float.
    """
    generator = np.random.default_rng(seed)
    size = max(1, _WEIGHTS_AT_ONCE // count)
    for start in range(0, resamples, size):
        block = min(size, resamples - start)
        drawn = generator.integers(count, size=(block, count)) + count * np.arange(block)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=block * count)
        yield weights.reshape(block, count).astype(float)


def resampled_ratios(
    metrics: Sequence[Metric], clusters: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Every metric on the same resampled images.

    Samples are first summed by image, so that a resample is a row of a matrix product; images are taken in
    the order of their sums, so that nothing depends on what they are called.

    Args:
        metrics: of the same samples.
        clusters: label of the image of each sample, `(samples,)`.
        resamples: number of resamples.
        seed: of the random generator.

    Returns:
        `(resamples, metrics)`; NaN where a denominator is zero.
    """
    if not metrics or not len(clusters):
        return np.full((resamples, len(metrics)), np.nan)
    parts = totals(np.concatenate([metric.parts for metric in metrics]), clusters)
    wholes = totals(np.concatenate([metric.wholes for metric in metrics]), clusters)
    order = np.lexsort(np.concatenate([parts, wholes]))
    parts, wholes = parts[:, order], wholes[:, order]
    ratios = [len(metric.parts) for metric in metrics]
    starts = np.cumsum([0, *ratios[:-1]])
    blocks = [
        np.add.reduceat(weighted_ratios(weights, parts, wholes), starts, axis=1) / ratios
        for weights in draw_clusters(parts.shape[1], resamples, seed)
    ]
    return np.concatenate(blocks)


def weighted_ratios(weights: np.ndarray, parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Ratios of sums with every cluster taken a number of times.

    Args:
        weights: how often, `(resamples, clusters)`.
        parts: numerators by cluster, `(ratios, clusters)`.
        wholes: denominators by cluster, `(ratios, clusters)`.

    Returns:
        `(resamples, ratios)`; NaN where the denominator is zero.
    """
    below = weights @ wholes.T
    ratios: np.ndarray = np.divide(weights @ parts.T, below, out=np.full_like(below, np.nan), where=below > 0)
    return ratios


def percentile_estimate(value: float, draws: np.ndarray, *, samples: int, clusters: int) -> Estimate:
    """A value with the percentile interval of its resampled values.

    Args:
        value: the point estimate on all data.
        draws: `(resamples,)`; NaN, where a resample leaves the value undefined, is left out.
        samples: number of samples that count.
        clusters: number of images with a share in the denominator; with fewer than two, or if hardly any
            resample has a value, there is no interval; nor is there one if all resamples agree, which says
            that the data show no error, not that there is none.
    """
    draws = draws[np.isfinite(draws)]
    if clusters < 2 or len(draws) < 2:
        return Estimate(rounded(value), None, None, None, samples, clusters, "bootstrap")
    low, high = map(rounded, np.quantile(draws, TAILS))
    error = rounded(np.std(draws, ddof=1))
    if low == high:
        return Estimate(rounded(value), None, None, error, samples, clusters, "bootstrap")
    return Estimate(rounded(value), low, high, error, samples, clusters, "bootstrap")


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation over repeats; at least two."""
    deviation = float(np.std(values, ddof=1))
    return Spread(tuple(map(rounded, values)), rounded(np.mean(values)), rounded(deviation))


def totals(rows: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums by cluster, `(rows, samples)` -> `(rows, clusters)`, clusters in the order of their labels."""
    if not len(clusters):
        return rows
    order = np.argsort(clusters, kind="stable")
    labels = clusters[order]
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    return np.add.reduceat(rows[:, order], starts, axis=1)


def rounded(value: float | np.floating) -> float:
    """A value without what depends on the order of summation."""
    return round(float(value), _DECIMALS) + 0.0  # without the sign of a negative zero
