"""Each tested method beside the best of its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmfix.evaluation.analysis.estimates import Estimates, Figure, Key
from vlmfix.evaluation.analysis.marks import Mark, corrected, unanswered
from vlmfix.evaluation.analysis.pairing import paired, why_unpaired
from vlmfix.evaluation.analysis.results import Metric, Outcome
from vlmfix.evaluation.analysis.significance import SwapTest, swap_test
from vlmfix.evaluation.analysis.statistics import Estimate


@dataclass(frozen=True, eq=False)
class Best:
    """A tested method beside the best of its baselines.

    Args:
        baseline: label of the baseline with the best headline figure.
        figures: the headline figures of the method, with their paired differences to this baseline.
        mark: whether the first of these differences is more than chance, all tested methods counted.
        verdict: how the method stands to it: "better than" or "worse than" where that is marked, else "not
            distinguishable from"; "only partly better than" where captions have fewer hallucinations of one
            kind at more of the other, or at less recall.
    """

    baseline: str
    figures: list[Figure]
    mark: Mark
    verdict: str

    @property
    def words(self) -> str:
        """Such as "not distinguishable from greedy"."""
        return f"{self.verdict} {self.baseline}"


def best_baselines(outcomes: Sequence[Outcome], wholes: Sequence[Estimates]) -> dict[str, Best]:
    """The best baseline of each tested method, by its label; none for baselines, and where there is none.

    Args:
        outcomes: of one task and protocol.
        wholes: the estimates of each.
    """
    baselines = [each for each in zip(outcomes, wholes, strict=True) if each[0].baseline_of is not None]
    found: dict[str, tuple[Outcome, Outcome, list[Figure]]] = {}
    tested: dict[str, tuple[Estimate, SwapTest]] = {}
    marks: dict[str, Mark] = {}
    for outcome, whole in zip(outcomes, wholes, strict=True):
        if outcome.baseline_of is not None:
            continue
        own = [each for each in baselines if each[0].baseline_of in ("", outcome.method)]
        headline = _headline(outcome, whole)
        chosen = _best(outcome, whole, headline, own)
        if chosen is None:
            continue
        other, base = chosen
        here, there = paired(outcome, whole, other, base)
        figures = [
            Figure(whole.metrics[key], whole.estimate(key), here.difference(key, there), None)
            for key in headline
        ]
        found[outcome.method] = outcome, other, figures
        metric, theirs = here.metrics[headline[0]], there.metrics[headline[0]]
        difference = figures[0].difference
        if reason := unanswered(outcome, other):
            marks[outcome.method] = Mark(False, reason, None)
        elif difference is None:
            marks[outcome.method] = Mark(False, f"{metric.name} is undefined for one of the two", None)
        else:
            assert isinstance(metric, Metric)
            assert isinstance(theirs, Metric)
            tested[outcome.method] = difference, swap_test(metric, theirs, np.array(outcome.clusters))
    marks |= corrected(tested)
    return {
        method: Best(other.method, figures, marks[method], _verdict(outcome, figures, marks[method]))
        for method, (outcome, other, figures) in found.items()
    }


def _headline(outcome: Outcome, whole: Estimates) -> list[Key]:
    """The metrics of the whole task with a better direction."""
    group = min((metric.group for metric in outcome.metrics), key=bool, default="")
    return [key for key, metric in whole.metrics.items() if key[:2] == ("", group) and metric.better]


def _best(
    outcome: Outcome,
    whole: Estimates,
    headline: Sequence[Key],
    baselines: Sequence[tuple[Outcome, Estimates]],
) -> tuple[Outcome, Estimates] | None:
    """The baseline with the best first figure, the first of equals; None if there is no such figure."""
    comparable = [
        (other, base)
        for other, base in baselines
        if headline
        and headline[0] in base.metrics
        and base.metrics[headline[0]].is_defined
        and not why_unpaired(outcome, other)
    ]
    if not comparable:
        return None
    sign = 1 if whole.metrics[headline[0]].better == "higher" else -1
    return max(comparable, key=lambda each: sign * each[1].metrics[headline[0]].value)


def _verdict(outcome: Outcome, figures: Sequence[Figure], mark: Mark) -> str:
    """How a method stands to a baseline; see `Best`."""
    if not mark.marked:
        return "not distinguishable from"
    gains = {each.metric.name: each.gain for each in figures}
    if gains[figures[0].metric.name] < 0:
        return "worse than"
    if outcome.tradeoff is not None and not outcome.yes_no:
        fewer_wrong, recall = (gains.get(name, 0.0) for name in outcome.tradeoff)
        if fewer_wrong <= 0 or recall < 0:
            return "only partly better than"
    return "better than"
