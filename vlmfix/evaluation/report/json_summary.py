"""Scores and costs as JSON: what `metrics.json` and `costs.json` hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.best import Best
from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.marks import Mark
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.analysis.statistics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Estimate,
)
from vlmfix.evaluation.report.caveats import caveats

DIGITS = 8
"""Significant digits of written numbers; what comes after them may depend on the machine."""


def summarise(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """All scores of a run: for equal records the same bytes on any machine, in any order of the work.

    Costs, activity and details of the run are left out, as they differ from run to run.

    Args:
        comparisons: from `vlmfix.evaluation.analysis.comparison.compare`.
    """
    summary: dict[str, Any] = rounded(
        {
            "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
            "tasks": [
                {
                    "task": comparison.task,
                    "protocol": comparison.protocol,
                    "subset": comparison.rows[0].outcome.subset or None,
                    "clusters": comparison.rows[0].outcome.unit,
                    "first_method": comparison.rows[0].outcome.method,
                    "headline": None if comparison.main is None else comparison.main.name,
                    "methods": [_method(row, comparison.main_marks) for row in comparison.rows],
                    "caveats": caveats(comparison),
                }
                for comparison in comparisons
            ],
        }
    )
    return summary


def costs(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What methods cost and did: measured figures, each also relative to the first method of its task."""
    first: dict[tuple[str, str], Outcome] = {}
    found = []
    for outcome in outcomes:
        base = first.setdefault((outcome.task, outcome.protocol), outcome)
        found.append(
            {
                "task": outcome.task,
                "protocol": outcome.protocol,
                "method": outcome.method,
                "costs": outcome.costs,
                "relative": relative_costs(outcome, base),
                "activity": outcome.activity,
                "inactive": outcome.inactive,
            }
        )
    written: dict[str, Any] = rounded({"methods": found})
    return written


def relative_costs(outcome: Outcome, first: Outcome) -> dict[str, float | None]:
    """Each cost divided by the one of the first method; None where either is unknown or zero."""
    return {
        name: cost / base if cost is not None and (base := first.costs.get(name)) else None
        for name, cost in outcome.costs.items()
    }


def _method(row: Row, marks: Mapping[str, Mark]) -> dict[str, Any]:
    outcome = row.outcome
    return {
        "method": outcome.method,
        "parameters": outcome.parameters,
        "counts": outcome.counts,
        "failures": outcome.failures,
        "metrics": [_figure(each) for each in row.figures],
        "parsers": {name: [_figure(each) for each in figures] for name, figures in row.parsers.items()},
        "objects": {name: {"wrong": wrong, "of": of} for name, (wrong, of) in outcome.objects.items()},
        "baseline_of": outcome.baseline_of,
        "best_baseline": None if row.best is None else _best(row.best),
        "mark": marks.get(outcome.method),
        "mcnemar": row.mcnemar,
        "calibration": outcome.calibration,
        "unpaired": row.unpaired or None,
    }


def _best(best: Best) -> dict[str, Any]:
    return {
        "method": best.baseline,
        "verdict": best.verdict,
        "mark": best.mark,
        "differences": {
            each.metric.name: None if each.difference is None else _difference(each.difference)
            for each in best.figures
        },
    }


def _figure(figure: Figure) -> dict[str, Any]:
    metric = figure.metric
    return {
        "name": metric.name,
        "group": metric.group,
        "better": metric.better,
        "percent": metric.percent,
        "undefined": not figure.is_defined,
        **_estimate(figure.estimate),
        "difference": None if figure.difference is None else _difference(figure.difference),
        "repeats": figure.spread,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    content = dataclasses.asdict(estimate)
    return {"standard_error": content.pop("error"), "interval": content.pop("source"), **content}


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {**_estimate(estimate), "excludes_zero": estimate.excludes_zero}


def rounded(value: Any) -> Any:
    """A value as result files hold it: what JSON can hold, with numbers rounded in this one place."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float | np.floating):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, np.generic | np.ndarray):
        return rounded(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return rounded(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((rounded(each) for each in value), key=lambda each: (str(type(each)), each))
    if isinstance(value, Sequence):
        return [rounded(each) for each in value]
    return str(value)
