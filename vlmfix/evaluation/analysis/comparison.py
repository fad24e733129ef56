"""Methods on one task side by side: every metric with its interval, and paired with the first method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from vlmfix.evaluation.analysis.best import Best, best_baselines
from vlmfix.evaluation.analysis.estimates import Estimates, Figure, Key
from vlmfix.evaluation.analysis.marks import Mark, corrected, unanswered
from vlmfix.evaluation.analysis.pairing import paired, why_unpaired
from vlmfix.evaluation.analysis.results import AnyMetric, Metric, Outcome
from vlmfix.evaluation.analysis.significance import SwapTest, mcnemar, swap_test
from vlmfix.evaluation.analysis.statistics import Estimate, Spread
from vlmfix.evaluation.analysis.statistics import spread as spread_of


@dataclass(frozen=True)
class McNemar:
    """Samples that exactly one of two methods has right, and the exact p of as uneven a split by chance."""

    better: int
    worse: int
    p: float


@dataclass(frozen=True, eq=False)
class Row:
    """One method in a comparison.

    Args:
        outcome: as measured, its samples sorted by id and sample.
        figures: of the protocol's parser, in the order of the outcome.
        parsers: the figures by each named parser.
        mcnemar: against the first method, by group; a question that several groups share counts once in the
            group "". Empty for the first method, several repeats, and tasks without right and wrong.
        unpaired: why the method is not compared with the first one; "" if it is.
        best: how it stands to the best of its baselines; None for baselines, and where there is none.
    """

    outcome: Outcome
    figures: list[Figure]
    parsers: dict[str, list[Figure]]
    mcnemar: dict[str, McNemar]
    unpaired: str
    best: Best | None = None

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
    def title(self) -> str:
        """Task, protocol and, of a part of the images, which."""
        subset = self.rows[0].outcome.subset
        return f"{self.task} ({self.protocol}{f', {subset}' if subset else ''})"

    @property
    def groups(self) -> list[str]:
        """Groups of the headline metrics in their order, the whole task ("") first."""
        found = [figure.metric.group for row in self.rows for figure in row.figures]
        return sorted(dict.fromkeys(found), key=bool)

    @property
    def others(self) -> list[Row]:
        """Whose answers are shown beside the answers of the first: tested methods; without any, baselines."""
        return [row for row in self.rows[1:] if row.outcome.baseline_of is None] or self.rows[1:]

    def main_of(self, group: str) -> AnyMetric | None:
        """The metric that a table by group shows of it: the headline metric, or the first that there is."""
        found = self.headline(group)
        same = (each for each in found if self.main is not None and each.name == self.main.name)
        return next(same, next(iter(found), None))

    @property
    def main(self) -> AnyMetric | None:
        """The one headline metric, whose differences are marked."""
        return next(iter(self.headline(self.groups[0])), None) if self.groups else None

    @cached_property
    def main_marks(self) -> dict[str, Mark]:
        """The marks on the headline metric, by method; see `marks`."""
        return {} if self.main is None else self.marks(self.main.name, self.main.group)

    def marks(self, name: str, group: str = "") -> dict[str, Mark]:
        """The marks on the one headline metric of a table, corrected for the number of methods in it.

        The metric is chosen before the methods are run. Methods that cannot be compared are not counted.

        Args:
            name: of the metric.
            group: of the metric.

        Returns:
            For each method but the first, by its label.

        Raises:
            ValueError: it is a figure of a ranking, for which there is no such test.
        """
        base, *others = self.rows
        found: dict[str, Mark] = {}
        tested: dict[str, tuple[Estimate, SwapTest]] = {}
        for row in others:
            first, figure = base.figure(name, group), row.figure(name, group)
            if reason := row.unpaired or unanswered(base.outcome, row.outcome):
                found[row.outcome.method] = Mark(False, reason, None)
            elif first is None or figure is None or figure.difference is None:
                found[row.outcome.method] = Mark(False, f"{name} is undefined for one of the two", None)
            elif not isinstance(figure.metric, Metric) or not isinstance(first.metric, Metric):
                raise ValueError(f"{name} is no ratio of sums, and gets no mark")
            else:
                test = swap_test(figure.metric, first.metric, np.array(row.outcome.clusters))
                tested[row.outcome.method] = figure.difference, test
        found |= corrected(tested)
        return {row.outcome.method: found[row.outcome.method] for row in others}

    def headline(self, group: str) -> list[AnyMetric]:
        """The metrics of a group that have a better direction, once each."""
        metrics = (figure.metric for row in self.rows for figure in row.figures)
        return list({each.name: each for each in metrics if each.group == group and each.better}.values())


def find(figures: Sequence[Figure], name: str, group: str = "") -> Figure | None:
    """The figure of that name and group, if there is one."""
    found = (each for each in figures if (each.metric.name, each.metric.group) == (name, group))
    return next(found, None)


def compare(outcomes: Sequence[Outcome]) -> list[Comparison]:
    """Every metric with its interval, and every method against the first one of its task.

    Intervals are clustered by image, see `vlmfix.evaluation.analysis.intervals`; differences are paired, by
    sample where both methods are a mean over the same ones, else by an image-level bootstrap. None depends on
    the order of the samples.

    Args:
        outcomes: outcomes of one task and protocol are compared with each other.

    Raises:
        ValueError: two outcomes of a task and protocol have the same label, or an outcome has a sample or a
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


def _rows(outcomes: list[Outcome]) -> list[Row]:
    first, rows = outcomes[0], []
    wholes = [Estimates(outcome, np.ones(len(outcome.samples), dtype=bool)) for outcome in outcomes]
    best = best_baselines(outcomes, wholes)
    for outcome, whole in zip(outcomes, wholes, strict=True):
        unpaired = why_unpaired(first, outcome)
        differences: dict[Key, Estimate | None] = {}
        tests: dict[str, McNemar] = {}
        if outcome is not first and not unpaired:
            here, there = paired(outcome, whole, first, wholes[0])
            differences = {key: here.difference(key, there) for key in here.metrics}
            if outcome.yes_no and len(np.unique(outcome.repeats)) == 1:
                tests = {
                    group: _mcnemar(first, outcome, members)
                    for (parser, group), members in here.members.items()
                    if not parser
                }
        parsers: dict[str, list[Figure]] = {}
        for key, metric in whole.metrics.items():
            spread = _spread(metric, outcome.repeats)
            figure = Figure(metric, whole.estimate(key), differences.get(key), spread)
            parsers.setdefault(key.parser, []).append(figure)
        own = parsers.pop("", [])
        rows.append(Row(outcome, own, parsers, tests, unpaired, best.get(outcome.method)))
    return rows


def _sorted(outcome: Outcome) -> Outcome:
    """The outcome with its samples by id and repeat, so that the given order cannot show in a result."""
    keys = [(sample.id, int(repeat)) for sample, repeat in zip(outcome.samples, outcome.repeats, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    twice = next((keys[a] for a, b in pairwise(order) if keys[a] == keys[b]), None)
    if twice:
        raise ValueError(
            f"{outcome.method} on {outcome.task} has sample {twice[0]} (repeat {twice[1]}) twice"
        )
    return dataclasses.replace(
        outcome,
        samples=[outcome.samples[index] for index in order],
        repeats=outcome.repeats[order],
        metrics=_taken(outcome.metrics, order, outcome),
        parsers={name: _taken(metrics, order, outcome) for name, metrics in outcome.parsers.items()},
    )


def _taken(metrics: Sequence[AnyMetric], order: list[int], outcome: Outcome) -> list[AnyMetric]:
    names = [(each.name, each.group) for each in metrics]
    if len(set(names)) < len(names):
        raise ValueError(f"{outcome.method} on {outcome.task} has a metric twice: {names}")
    return [each.in_order(order) for each in metrics]


def _mcnemar(first: Outcome, other: Outcome, members: np.ndarray) -> McNemar:
    seen: dict[tuple[str, Path | None, str], float] = {}
    for before, after, member in zip(first.samples, other.samples, members, strict=True):
        if member:
            # a cluster may have several pictures, about which the same is asked
            question = (after.cluster, after.image, after.prompt)
            seen.setdefault(question, (after.score or 0) - (before.score or 0))
    changes = np.sign(list(seen.values()))
    better, worse = int((changes > 0).sum()), int((changes < 0).sum())
    return McNemar(better, worse, mcnemar(better, worse))


def _spread(metric: AnyMetric, repeats: np.ndarray) -> Spread | None:
    several = np.unique(repeats)
    if len(several) < 2:
        return None
    return spread_of([metric.only(repeats == repeat).value for repeat in several])
