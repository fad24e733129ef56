"""Methods on one task side by side: every metric with its interval, and paired with the first method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from evals.results import Metric, Outcome
from evals.statistics import (
    Estimate,
    Spread,
    mcnemar,
    mean_estimate,
    percentile_estimate,
    resampled_ratios,
    spread,
)


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
        difference: to the first method on the items that both answered; None for the first method itself and
            where there is no pairing or an undefined value.
        spread: over the samples of the task; None if there is only one.
    """

    metric: Metric
    estimate: Estimate
    difference: Estimate | None
    spread: Spread | None

    @property
    def is_defined(self) -> bool:
        """Whether no denominator is zero; if one is, the value 0.0 means nothing."""
        return self.metric.is_defined


@dataclass(frozen=True)
class McNemar:
    """Items that exactly one of two methods has right, and the exact p of as uneven a split by chance."""

    better: int
    worse: int
    p: float


@dataclass(frozen=True, eq=False)
class Row:
    """One method in a comparison.

    Args:
        outcome: as measured, its items sorted by id and sample.
        figures: of the protocol's parser, in the order of the outcome.
        parsers: the figures by each named parser.
        mcnemar: against the first method, by group; a question that several groups share counts once in the
            group "". Empty for the first method, several samples, and tasks without right and wrong.
        unpaired: why the method is not compared with the first one; "" if it is.
    """

    outcome: Outcome
    figures: list[Figure]
    parsers: dict[str, list[Figure]]
    mcnemar: dict[str, McNemar]
    unpaired: str

    def figure(self, name: str, group: str = "") -> Figure | None:
        """The headline figure of that name, if there is one."""
        return find(self.figures, name, group)


@dataclass(frozen=True)
class Comparison:
    """The methods that ran one task under one protocol; differences are to the first."""

    task: str
    protocol: str
    rows: list[Row]

    @property
    def groups(self) -> list[str]:
        """Groups of the headline metrics in their order, the whole task ("") first."""
        found = [figure.metric.group for row in self.rows for figure in row.figures]
        return sorted(dict.fromkeys(found), key=bool)

    def headline(self, group: str) -> list[Metric]:
        """The metrics of a group that have a better direction, once each."""
        metrics = (figure.metric for row in self.rows for figure in row.figures)
        return list({each.name: each for each in metrics if each.group == group and each.better}.values())


def find(figures: Sequence[Figure], name: str, group: str = "") -> Figure | None:
    """The figure of that name and group, if there is one."""
    found = (each for each in figures if (each.metric.name, each.metric.group) == (name, group))
    return next(found, None)


def compare(outcomes: Sequence[Outcome]) -> list[Comparison]:
    """Every metric with its interval, and every method against the first one of its task.

    Means over items get a cluster-robust standard error (arXiv 2411.00640), other ratios an image-level
    bootstrap; both are paired for differences. Neither depends on the order of the items.

    Args:
        outcomes: those of one task and protocol are compared with each other.

    Raises:
        ValueError: two outcomes of a task and protocol have the same label, or an outcome has an item or a
            metric twice.
    """
    tasks: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        others = tasks.setdefault((outcome.task, outcome.protocol), [])
        if outcome.method in {other.method for other in others}:
            raise ValueError(
                f"{outcome.method} occurs twice on {outcome.task} ({outcome.protocol}); labels must differ"
            )
        others.append(_sorted(outcome))
    return [Comparison(task, protocol, _rows(several)) for (task, protocol), several in tasks.items()]


class _Measured:
    """The metrics of an outcome, restricted to some of its items, with their resampled values."""

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
        """Whether a metric is a plain mean over all items that its group has."""
        wholes = self.metrics[key].wholes
        return len(wholes) == 1 and bool((wholes[0] == self.members[key[:2]]).all())

    def estimate(self, key: Key) -> Estimate:
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

    def difference(self, key: Key, first: _Measured) -> Estimate | None:
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
        """Items with a share in a denominator, and images with a share in each of the denominators."""
        shares = self.metrics[key].wholes > 0
        clusters = min(len(np.unique(self.clusters[share])) for share in shares)
        return int(shares.any(axis=0).sum()), clusters

    @staticmethod
    def _percentiles(value: float, draws: np.ndarray, size: Sequence[int]) -> Estimate:
        items, clusters = size
        return percentile_estimate(value, draws, items=items, clusters=clusters)


def _rows(outcomes: list[Outcome]) -> list[Row]:
    first, rows = outcomes[0], []
    base: _Measured | None = None
    for outcome in outcomes:
        whole = _Measured(outcome, np.ones(len(outcome.items), dtype=bool))
        base = base or whole
        unpaired = _why_unpaired(first, outcome)
        differences: dict[Key, Estimate | None] = {}
        tests: dict[str, McNemar] = {}
        if outcome is not first and not unpaired:
            kept = _answered(first) & _answered(outcome)
            here, there = whole, base
            if not kept.all():
                here, there = (_Measured(each, kept) for each in (outcome, first))
            differences = {key: here.difference(key, there) for key in here.metrics}
            if outcome.yes_no and len(np.unique(outcome.samples)) == 1:
                tests = {
                    group: _mcnemar(first, outcome, members)
                    for (parser, group), members in here.members.items()
                    if not parser
                }
        figures = {
            key: Figure(metric, whole.estimate(key), differences.get(key), _spread(metric, outcome.samples))
            for key, metric in whole.metrics.items()
        }
        parsers: dict[str, list[Figure]] = {}
        for key, figure in figures.items():
            parsers.setdefault(key.parser, []).append(figure)
        rows.append(Row(outcome, parsers.pop("", []), parsers, tests, unpaired))
    return rows


def _sorted(outcome: Outcome) -> Outcome:
    """The outcome with its items by id and sample, so that the given order cannot show in a result."""
    keys = [(item.id, int(sample)) for item, sample in zip(outcome.items, outcome.samples, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    twice = next((keys[a] for a, b in pairwise(order) if keys[a] == keys[b]), None)
    if twice:
        raise ValueError(f"{outcome.method} on {outcome.task} has item {twice[0]} (sample {twice[1]}) twice")
    return dataclasses.replace(
        outcome,
        items=[outcome.items[index] for index in order],
        samples=outcome.samples[order],
        metrics=_taken(outcome.metrics, order, outcome),
        parsers={name: _taken(metrics, order, outcome) for name, metrics in outcome.parsers.items()},
    )


def _taken(metrics: list[Metric], order: list[int], outcome: Outcome) -> list[Metric]:
    names = [(each.name, each.group) for each in metrics]
    if len(set(names)) < len(names):
        raise ValueError(f"{outcome.method} on {outcome.task} has a metric twice: {names}")
    return [
        dataclasses.replace(each, parts=each.parts[:, order], wholes=each.wholes[:, order])
        for each in metrics
    ]


def _why_unpaired(first: Outcome, other: Outcome) -> str:
    asked = [
        {
            (item.id, int(sample)): (item.prompt, item.gold, item.cluster)
            for item, sample in zip(outcome.items, outcome.samples, strict=True)
        }
        for outcome in (first, other)
    ]
    if asked[0].keys() != asked[1].keys():
        alone = len(asked[0].keys() ^ asked[1].keys())
        return f"only one of the two has {alone:,} of the items"
    differing = sum(question != asked[1][key] for key, question in asked[0].items())
    return f"{differing:,} items differ in prompt, gold answer or image" if differing else ""


def _answered(outcome: Outcome) -> np.ndarray:
    return np.array([item.score is not None for item in outcome.items], dtype=bool)


def _mcnemar(first: Outcome, other: Outcome, members: np.ndarray) -> McNemar:
    seen: dict[tuple[str, str], float] = {}
    for before, after, member in zip(first.items, other.items, members, strict=True):
        if member:
            seen.setdefault((after.cluster, after.prompt), (after.score or 0) - (before.score or 0))
    changes = np.sign(list(seen.values()))
    better, worse = int((changes > 0).sum()), int((changes < 0).sum())
    return McNemar(better, worse, mcnemar(better, worse))


def _spread(metric: Metric, samples: np.ndarray) -> Spread | None:
    several = np.unique(samples)
    if len(several) < 2:
        return None
    chosen = (samples == sample for sample in several)
    return spread([Metric("", metric.parts[:, each], metric.wholes[:, each]).value for each in chosen])
