"""The metrics of one method with their intervals, and their differences to the metrics of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.analysis.statistics import (
    Estimate,
    mean_estimate,
    percentile_estimate,
    resampled_ratios,
)


class Key(NamedTuple):
    """Where a metric stands: under which parser ("" is the headline), in which group, with what name."""

    parser: str
    group: str
    name: str


class Estimates:
    """The metrics of an outcome, restricted to some of its samples, with their resampled values.

    Args:
        outcome: its samples sorted.
        kept: which of them count, `(samples,)` bool.
    """

    def __init__(self, outcome: Outcome, kept: np.ndarray) -> None:
        self.clusters = np.unique(outcome.clusters, return_inverse=True)[1]
        self.metrics = {
            Key(parser, each.group, each.name): each
            if kept.all()
            else dataclasses.replace(each, parts=each.parts * kept, wholes=each.wholes * kept)
            for parser, metrics in {"": outcome.metrics, **outcome.parsers}.items()
            for each in metrics
        }
        self.members: dict[tuple[str, str], np.ndarray] = {}
        for key, metric in self.metrics.items():
            before = self.members.get(key[:2], np.zeros(len(kept), dtype=bool))
            self.members[key[:2]] = before | (metric.wholes > 0).any(axis=0)
        draws = resampled_ratios(list(self.metrics.values()), self.clusters)
        self._draws = dict(zip(self.metrics, draws.T, strict=True))

    def is_mean(self, key: Key) -> bool:
        """Whether a metric is a plain mean over all samples that its group has."""
        wholes = self.metrics[key].wholes
        return len(wholes) == 1 and bool((wholes[0] == self.members[key[:2]]).all())

    def estimate(self, key: Key) -> Estimate:
        """A metric with its interval."""
        metric = self.metrics[key]
        if not metric.is_defined:
            return Estimate(metric.value, None, None, None, *self._size(key), "undefined")
        if self.is_mean(key):
            members = self.members[key[:2]]
            found = mean_estimate(metric.parts[0][members], self.clusters[members])
        else:
            found = self._percentiles(metric.value, self._draws[key], self._size(key))
        if not metric.percent or found.low is None or found.high is None:
            return found
        return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))

    def difference(self, key: Key, first: Estimates) -> Estimate | None:
        """To the same metric of the first method; None where either is undefined."""
        metric, other = self.metrics[key], first.metrics.get(key)
        if other is None or not metric.is_defined or not other.is_defined:
            return None
        if self.is_mean(key) and first.is_mean(key):
            members = self.members[key[:2]]
            return mean_estimate((metric.parts - other.parts)[0][members], self.clusters[members])
        draws = self._draws[key] - first._draws[key]
        sizes = zip(self._size(key), first._size(key), strict=True)
        return self._percentiles(metric.value - other.value, draws, [min(both) for both in sizes])

    def _size(self, key: Key) -> tuple[int, int]:
        """Samples with a share in a denominator, and images with a share in each of the denominators."""
        shares = self.metrics[key].wholes > 0
        clusters = min(len(np.unique(self.clusters[share])) for share in shares)
        return int(shares.any(axis=0).sum()), clusters

    @staticmethod
    def _percentiles(value: float, draws: np.ndarray, size: Sequence[int]) -> Estimate:
        samples, clusters = size
        return percentile_estimate(value, draws, samples=samples, clusters=clusters)
