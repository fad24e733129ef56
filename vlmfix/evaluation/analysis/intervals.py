"""Intervals of shares and of paired differences, clustered by image, that hold near 0 and 1, too.

The t interval of a share has no width where all samples are right, and the bootstrap cannot draw an error
that is not in the data. Wilson's interval, and one added to both counts of a paired difference, repair that;
both are taken at the number of independent samples that the samples are worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, ndtri, stdtrit

from vlmfix.evaluation.analysis.results import Metric, RankMetric
from vlmfix.evaluation.analysis.statistics import LEVEL, TAILS, Estimate, rounded, totals

_FEW = 3  # errors, or right answers, up to which Wilson's interval is widened


@dataclass(frozen=True, eq=False)
class Linearized:
    """A value as a sum over images, to first order.

    Args:
        value: the point estimate.
        shares: of each image in its error, `(images,)`, summing to 0: for a mean over n samples, the sum of
            the image's deviations from it, over n.
        samples: number of samples that count.
        clusters: number of images that these are of; where several ratios are averaged, in each of them.
    """

    value: float
    shares: np.ndarray
    samples: int
    clusters: int

    @property
    def error(self) -> float | None:
        """The sandwich standard error with the factor C / (C - 1); None for fewer than two images."""
        count = len(self.shares)
        if self.clusters < 2:
            return None
        return rounded(np.sqrt(count / (count - 1) * (self.shares**2).sum()))

    def estimate(self, ends: tuple[float, float] | None, source: str) -> Estimate:
        """With the ends of its interval, if it has one."""
        low, high = (None, None) if ends is None else map(rounded, ends)
        return Estimate(rounded(self.value), low, high, self.error, self.samples, self.clusters, source)


def t_estimate(linearized: Linearized, limits: tuple[float, float]) -> Estimate:
    """A value plus and minus Student's t with C - 1 degrees of freedom times the standard error.

    Args:
        linearized: the value; without an error, or with one of 0, it has no interval.
        limits: what the ends of the interval are cut at.
    """
    if not linearized.error:
        return linearized.estimate(None, "sandwich")
    half = float(stdtrit(len(linearized.shares) - 1, TAILS[1])) * linearized.error
    low, high = np.clip([linearized.value - half, linearized.value + half], *limits)
    return linearized.estimate((low, high), "sandwich")


def ratio_estimate(metric: Metric, clusters: np.ndarray) -> Estimate:
    """A metric with its interval: Wilson's for shares of counts, Student's t for everything else.

    Where all samples are right, or none, nothing is known of how much the samples of an image have in common;
    then images count, not samples.

    Args:
        metric: its denominators are not zero.
        clusters: label of the image of each sample, `(samples,)`.
    """
    found = _linearized(metric.parts, metric.wholes, clusters)
    if not metric.percent or not _are_counts(metric):
        return t_estimate(found, metric.bounds)
    if found.error is None:
        return found.estimate(None, "Wilson")
    count, quantile = _effective(found, metric.wholes.sum(), found.value * (1 - found.value))
    return found.estimate(wilson(found.value, count, quantile), "Wilson")


def wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share, modified for few errors (Brown, Cai and DasGupta 2001).

    Up to three errors, or right answers, one end is at least as far out as the bound of a Poisson count.

    Args:
        share: in [0, 1].
        count: of independent samples; need not be whole.
        quantile: how many standard errors an end is from the middle.
    """
    shrink = 1 + quantile**2 / count
    middle = (share + quantile**2 / (2 * count)) / shrink
    half = quantile / shrink * np.sqrt(share * (1 - share) / count + quantile**2 / (4 * count**2))
    low = 0.0 if share == 0 else float(middle - half)
    high = 1.0 if share == 1 else float(middle + half)
    if 0 < count * share <= _FEW:
        low = min(low, float(gammaincinv(count * share, 1 - LEVEL)) / count)
    if 0 < count * (1 - share) <= _FEW:
        high = max(high, 1 - float(gammaincinv(count * (1 - share), 1 - LEVEL)) / count)
    return low, high


def paired_estimate(metric: Metric, other: Metric, clusters: np.ndarray) -> Estimate:
    """The difference of two means over the same samples with its interval.

    Samples that are right or wrong: adjusted after Bonett and Price (2012), with one added to the samples
    that only one method has right and one to those that only the other has; the value is then not in the
    middle of the interval. Other scores: Student's t of the differences.

    Args:
        metric: of one method; see `is_by_sample`.
        other: of the other method.
        clusters: label of the image of each sample, `(samples,)`.
    """
    changes = metric.parts - other.parts
    found = _linearized(changes, metric.wholes, clusters)
    widest = metric.bounds[1] - metric.bounds[0]
    limits = (-widest, widest)
    if not metric.percent or not np.isin([metric.parts, other.parts], (0, 1)).all():
        return t_estimate(found, limits)
    if found.error is None:
        return found.estimate(None, "adjusted")
    sizes = metric.wholes.sum(axis=1)
    better, worse = (float(((sign * changes > 0).sum(axis=1) / sizes).mean()) for sign in (1, -1))
    variance = rounded(better + worse - (better - worse) ** 2)
    count, quantile = _effective(found, sizes.sum(), variance)
    gained, lost = (better * count + 1) / (count + 2), (worse * count + 1) / (count + 2)
    middle = gained - lost
    half = quantile * np.sqrt((gained + lost - middle**2) / (count + 2))
    low, high = np.clip([middle - half, middle + half], *limits)
    return found.estimate((low, high), "adjusted")


def rank_estimate(metric: RankMetric, clusters: np.ndarray) -> Estimate:
    """A figure of a ranking with its interval, by what each image moves it to first order; Student's t.

    For the area under the ROC curve, the standard error is the one of DeLong et al. (1988) with the
    covariances inside images added, after Obuchowski (1997).

    Args:
        metric: both answers occur in each of its sets.
        clusters: label of the image of each sample, `(samples,)`.
    """
    return t_estimate(_ranked(metric, *metric.shares(), clusters), (0.0, 1.0))


def rank_difference(metric: RankMetric, other: RankMetric, clusters: np.ndarray) -> Estimate:
    """The difference of a figure of two rankings of the same samples, with its interval as above."""
    (own, moves), (theirs, their_moves) = metric.shares(), other.shares()
    return t_estimate(_ranked(metric, own - theirs, moves - their_moves, clusters), (-1.0, 1.0))


def _ranked(metric: RankMetric, value: float, moves: np.ndarray, clusters: np.ndarray) -> Linearized:
    above, below = np.split(totals(np.concatenate([moves[None], metric.wholes]), clusters), [1])
    return Linearized(
        value=value,
        shares=above[0, (below > 0).any(axis=0)],
        samples=int(metric.members.any(axis=0).sum()),
        clusters=int((below > 0).sum(axis=1).min()),
    )


def is_by_sample(metric: Metric, other: Metric) -> bool:
    """Whether two metrics are means over the same samples, or averages of such means."""
    return np.array_equal(metric.wholes, other.wholes) and bool(np.isin(metric.wholes, (0, 1)).all())


def _are_counts(metric: Metric) -> bool:
    """Whether every sample adds whole numbers, and no more to a numerator than to its denominator."""
    parts, wholes = metric.parts, metric.wholes
    return bool(((parts == np.round(parts)) & (parts >= 0) & (parts <= wholes)).all())


def _linearized(parts: np.ndarray, wholes: np.ndarray, clusters: np.ndarray) -> Linearized:
    """The mean of the ratios of sums, `(ratios, samples)` each."""
    above, below = np.split(totals(np.concatenate([parts, wholes]), clusters), 2)
    ratios = above.sum(axis=1, keepdims=True) / below.sum(axis=1, keepdims=True)
    shares = ((above - ratios * below) / below.sum(axis=1, keepdims=True)).mean(axis=0)
    return Linearized(
        value=float(ratios.mean()),
        shares=shares[(below > 0).any(axis=0)],
        samples=int((wholes > 0).any(axis=0).sum()),
        clusters=int((below > 0).sum(axis=1).min()),
    )


def _effective(found: Linearized, count: float, variance: float) -> tuple[float, float]:
    """How many independent samples `count` samples are worth, and the quantile that goes with them.

    Args:
        found: with a standard error.
        count: the sum of all denominators.
        variance: of one sample; 0 where none differs from the others.
    """
    images = len(found.shares)
    quantile = float(ndtri(TAILS[1]) if images == count else stdtrit(images - 1, TAILS[1]))
    if variance <= 0 or found.error is None:
        return float(images), quantile
    return float(count) / max(1.0, found.error**2 * (float(count) - 1) / variance), quantile
