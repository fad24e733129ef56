"""Methods on one task side by side: every metric with its interval, and paired with the first method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.estimates import Estimates, Key
from vlmfix.evaluation.analysis.results import Metric, Outcome
from vlmfix.evaluation.analysis.significance import mcnemar
from vlmfix.evaluation.analysis.statistics import Estimate, Spread, spread
from vlmfix.evaluation.files.hashing import differences


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

    metric: Metric
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


@dataclass(frozen=True)
class McNemar:
    """Samples that exactly one of two methods has right, and the exact p of as uneven a split by chance."""

    better: int
    worse: int
    p: float


@dataclass(frozen=True, eq=False)
class Best:
    """A tested method beside the best of its baselines.

    Args:
        baseline: label of the baseline with the best headline figure.
        figures: the headline figures of the method, with their paired differences to this baseline.
        verdict: how the method stands to it: "better than", "worse than" or "not distinguishable from", by
            whether the interval of the first difference excludes 0; "only partly better than" where captions
            have fewer hallucinations of one kind at more of the other, or at less recall.
    """

    baseline: str
    figures: list[Figure]
    verdict: str

    @property
    def words(self) -> str:
        """Such as "not distinguishable from greedy"."""
        return f"{self.verdict} {self.baseline}"


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
    base: Estimates | None = None
    baselines: list[tuple[Outcome, Estimates]] = []
    for outcome in outcomes:
        whole = Estimates(outcome, np.ones(len(outcome.samples), dtype=bool))
        base = base or whole
        unpaired = _why_unpaired(first, outcome)
        differences: dict[Key, Estimate | None] = {}
        tests: dict[str, McNemar] = {}
        if outcome is not first and not unpaired:
            here, there = _paired(outcome, whole, first, base)
            differences = {key: here.difference(key, there) for key in here.metrics}
            if outcome.yes_no and len(np.unique(outcome.repeats)) == 1:
                tests = {
                    group: _mcnemar(first, outcome, members)
                    for (parser, group), members in here.members.items()
                    if not parser
                }
        figures = {
            key: Figure(metric, whole.estimate(key), differences.get(key), _spread(metric, outcome.repeats))
            for key, metric in whole.metrics.items()
        }
        if outcome.baseline_of is not None:
            baselines.append((outcome, whole))
            best = None
        else:
            own = [each for each in baselines if each[0].baseline_of in ("", outcome.method)]
            best = _best(outcome, whole, figures, own)
        parsers: dict[str, list[Figure]] = {}
        for key, figure in figures.items():
            parsers.setdefault(key.parser, []).append(figure)
        rows.append(Row(outcome, parsers.pop("", []), parsers, tests, unpaired, best))
    return rows


def _paired(
    outcome: Outcome, whole: Estimates, other: Outcome, base: Estimates
) -> tuple[Estimates, Estimates]:
    """Both on the samples that both answered."""
    kept = _answered(other) & _answered(outcome)
    return (whole, base) if kept.all() else (Estimates(outcome, kept), Estimates(other, kept))


def _best(
    outcome: Outcome,
    whole: Estimates,
    figures: Mapping[Key, Figure],
    baselines: list[tuple[Outcome, Estimates]],
) -> Best | None:
    """The baseline with the best headline figure, the first of equals; None if there is no such figure."""
    group = min((metric.group for metric in outcome.metrics), key=bool, default="")
    headline = [key for key in figures if key[:2] == ("", group) and figures[key].metric.better]
    comparable = [
        (other, base)
        for other, base in baselines
        if headline and base.metrics[headline[0]].is_defined and not _why_unpaired(outcome, other)
    ]
    if not comparable:
        return None
    sign = 1 if figures[headline[0]].metric.better == "higher" else -1
    other, base = max(comparable, key=lambda each: sign * each[1].metrics[headline[0]].value)
    here, there = _paired(outcome, whole, other, base)
    beside = [dataclasses.replace(figures[key], difference=here.difference(key, there)) for key in headline]
    return Best(other.method, beside, _verdict(outcome, beside))


def _verdict(outcome: Outcome, figures: Sequence[Figure]) -> str:
    """How a method stands to a baseline; see `Best`."""
    gains = {each.metric.name: each.gain for each in figures}
    main = figures[0].difference
    if main is None or not main.excludes_zero:
        return "not distinguishable from"
    if gains[figures[0].metric.name] < 0:
        return "worse than"
    if outcome.tradeoff is not None and not outcome.yes_no:
        fewer_wrong, recall = (gains.get(name, 0.0) for name in outcome.tradeoff)
        if fewer_wrong <= 0 or recall < 0:
            return "only partly better than"
    return "better than"


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


def _taken(metrics: list[Metric], order: list[int], outcome: Outcome) -> list[Metric]:
    names = [(each.name, each.group) for each in metrics]
    if len(set(names)) < len(names):
        raise ValueError(f"{outcome.method} on {outcome.task} has a metric twice: {names}")
    return [
        dataclasses.replace(each, parts=each.parts[:, order], wholes=each.wholes[:, order])
        for each in metrics
    ]


def _why_unpaired(first: Outcome, other: Outcome) -> str:
    own, others = _settings(first), _settings(other)
    if own and others and (lines := differences(own, others)):
        return f"the runs differ in {'; '.join(lines)}"
    asked = [
        {
            (sample.id, int(repeat)): (sample.prompt, sample.target, sample.cluster)
            for sample, repeat in zip(outcome.samples, outcome.repeats, strict=True)
        }
        for outcome in (first, other)
    ]
    if asked[0].keys() != asked[1].keys():
        alone = len(asked[0].keys() ^ asked[1].keys())
        return f"only one of the two has {alone:,} of the samples"
    differing = sum(question != asked[1][key] for key, question in asked[0].items())
    return f"{differing:,} samples differ in prompt, target answer or image" if differing else ""


def _settings(outcome: Outcome) -> dict[str, Any]:
    """What must be equal in the keys of two runs that are compared: all but the methods, what they ask and
    how they decode."""
    key = {
        name: value
        for name, value in outcome.details.get("key", {}).items()
        if name not in ("methods", "decoding", "calibrated_on")
    }
    if "protocol" in key:
        key["protocol"] = {name: value for name, value in key["protocol"].items() if name != "id"}
    return key


def _answered(outcome: Outcome) -> np.ndarray:
    return np.array([sample.score is not None for sample in outcome.samples], dtype=bool)


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


def _spread(metric: Metric, repeats: np.ndarray) -> Spread | None:
    several = np.unique(repeats)
    if len(several) < 2:
        return None
    chosen = (repeats == repeat for repeat in several)
    return spread([Metric("", metric.parts[:, each], metric.wholes[:, each]).value for each in chosen])
