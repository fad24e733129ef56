"""The metrics of one method with their intervals, and their differences to the metrics of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmfix.evaluation.analysis.intervals import (
    is_by_sample,
    paired_estimate,
    rank_difference,
    rank_estimate,
    ratio_estimate,
)
from vlmfix.evaluation.analysis.results import AnyMetric, Metric, Outcome, RankMetric
from vlmfix.evaluation.analysis.statistics import Estimate, Spread, percentile_estimate, resampled_ratios


class Key(NamedTuple):
    """Where a metric stands: under which parser ("" is the headline), in which group, with what name."""

    parser: str
    group: str
    name: str


@dataclass(frozen=True, eq=False)
class Figure:
    """A metric of one method.

    Args:
        metric: what it is made from.
        estimate: its value and interval.
        difference: to the first method on the samples that both answered; None for the first method itself
            and where there is no pairing or an undefined value.
        spread: over the repeats of the task; None if there is only one.
    """

    metric: AnyMetric
    estimate: Estimate
    difference: Estimate | None
    spread: Spread | None

    @property
    def is_defined(self) -> bool:
        """Whether no denominator is zero; if one is, the value 0.0 means nothing."""
        return self.metric.is_defined

    @property
    def gain(self) -> float:
        """The difference, in the better direction; 0.0 without one."""
        if self.difference is None:
            return 0.0
        return self.difference.value if self.metric.better == "higher" else -self.difference.value


class Estimates:
    """The metrics of an outcome, restricted to some of its samples.

    Args:
        outcome: its samples sorted.
        kept: which of them count, `(samples,)` bool.
    """

    def __init__(self, outcome: Outcome, kept: np.ndarray) -> None:
        self._drawn: tuple[Estimates, dict[Key, np.ndarray]] | None = None
        self.clusters = np.unique(outcome.clusters, return_inverse=True)[1]
        self.metrics: dict[Key, AnyMetric] = {
            Key(parser, each.group, each.name): each if kept.all() else each.only(kept)
            for parser, metrics in {"": outcome.metrics, **outcome.parsers}.items()
            for each in metrics
        }
        self.members: dict[tuple[str, str], np.ndarray] = {}
        for key, metric in self.metrics.items():
            before = self.members.get(key[:2], np.zeros(len(kept), dtype=bool))
            self.members[key[:2]] = before | (metric.wholes > 0).any(axis=0)

    def estimate(self, key: Key) -> Estimate:
        """A metric with its interval."""
        metric = self.metrics[key]
        if not metric.is_defined:
            return Estimate(metric.value, None, None, None, *self._size(key), "undefined")
        if isinstance(metric, RankMetric):
            return rank_estimate(metric, self.clusters)
        return ratio_estimate(metric, self.clusters)

    def difference(self, key: Key, first: Estimates) -> Estimate | None:
        """To the same metric of the first method; None where either is undefined."""
        metric, other = self.metrics[key], first.metrics.get(key)
        if other is None or not metric.is_defined or not other.is_defined:
            return None
        if isinstance(metric, RankMetric) and isinstance(other, RankMetric):
            return rank_difference(metric, other, self.clusters)
        assert isinstance(metric, Metric)
        assert isinstance(other, Metric)
        if is_by_sample(metric, other):
            return paired_estimate(metric, other, self.clusters)
        draws = self._drawn_differences(first)[key]
        samples, clusters = map(min, zip(self._size(key), first._size(key), strict=True))
        return percentile_estimate(metric.value - other.value, draws, samples=samples, clusters=clusters)

    def _drawn_differences(self, first: Estimates) -> dict[Key, np.ndarray]:
        """The differences of all ratios of counts on the same resampled images, `(resamples,)` each."""
        if self._drawn is None or self._drawn[0] is not first:
            pairs = {
                key: (metric, other)
                for key, metric in self.metrics.items()
                if isinstance(metric, Metric)
                and isinstance(other := first.metrics.get(key), Metric)
                and not is_by_sample(metric, other)
            }
            both = [metric for pair in zip(*pairs.values(), strict=True) for metric in pair]
            own, others = np.split(resampled_ratios(both, self.clusters), 2, axis=1)
            self._drawn = first, dict(zip(pairs, (own - others).T, strict=True))
        return self._drawn[1]

    def _size(self, key: Key) -> tuple[int, int]:
        """Samples with a share in a denominator, and images with a share in each of the denominators."""
        shares = self.metrics[key].wholes > 0
        clusters = min(len(np.unique(self.clusters[share])) for share in shares)
        return int(shares.any(axis=0).sum()), clusters
