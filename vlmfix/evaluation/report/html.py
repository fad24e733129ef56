"""The results of a run as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from vlmfix.evaluation.analysis.comparison import Comparison, find
from vlmfix.evaluation.analysis.results import AnyMetric, Outcome, SampleResult
from vlmfix.evaluation.analysis.statistics import RESAMPLES
from vlmfix.evaluation.report import formatting
from vlmfix.evaluation.report.caveats import caveats as caveats_of
from vlmfix.evaluation.report.caveats import progress
from vlmfix.evaluation.report.disagreements import Disagreement, disagreements, thumbnail
from vlmfix.evaluation.report.json_summary import relative_costs, rounded
from vlmfix.evaluation.report.page_style import page_environment, page_style
from vlmfix.evaluation.report.provenance import run_provenance, task_provenance
from vlmfix.evaluation.report.tradeoff_plot import Plot, tradeoff_plot

SHOWN = 200
"""Samples in the list of disagreements, over all tasks; each brings a picture along."""

_OBJECTS = 20
_UNANSWERED = 50
_LONGEST_ANSWER = 1500
_PLOT_SIZES = ((680, 430), (330, 360))  # for wide and for narrow screens


@dataclass(frozen=True)
class _Share:
    """Wrong answers about one object by one method; the bar is in percent of the longest."""

    wrong: int
    of: int
    bar: float


@dataclass(frozen=True)
class _Section:
    """What the page shows of one task beyond the comparison itself."""

    comparison: Comparison
    caveats: list[str]
    provenance: dict[str, str]
    plots: list[Plot]
    companions: list[dict[str, str]]
    tested: list[str]
    parsers: list[AnyMetric]
    objects: dict[str, list[_Share | None]]
    further_objects: int
    costs: dict[str, list[str]]
    activity: dict[str, list[str]]
    unanswered: dict[str, list[SampleResult]]
    shown: list[Disagreement]
    differing: int


def write_report(
    path: str | Path, comparisons: Sequence[Comparison], *, title: str, caveats: Sequence[str] = ()
) -> None:
    """Write the page; pictures and all else are in the file.

    Args:
        path: of the HTML file; its folder exists.
        comparisons: from `vlmfix.evaluation.analysis.comparison.compare`.
        title: of the page.
        caveats: sentences at its top.
    """
    outcomes = [row.outcome for comparison in comparisons for row in comparison.rows]
    script = files("vlmfix.evaluation.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    page = _template().render(
        title=title,
        caveats=caveats,
        provenance=run_provenance(outcomes),
        sections=_sections(comparisons),
        others=_others(comparisons),
        longest_list=_UNANSWERED,
        resamples=RESAMPLES,
        style=page_style(),
        script=Markup(script),
        thumbnail=functools.cache(thumbnail),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    Path(path).write_bytes(page.encode("utf-8", "replace"))  # answers may hold lone surrogates


@functools.cache
def _template() -> Template:
    """The template of the page, compiled once."""
    environment = page_environment("vlmfix.evaluation.report")
    environment.filters |= {"shortened": _shortened, "json": _json}
    environment.globals |= {
        "find": find,
        "number": formatting.number,
        "value_texts": formatting.value_texts,
        "difference_texts": formatting.difference_texts,
        "spread_text": formatting.spread_text,
        "verdict": formatting.verdict,
        "head": formatting.title,
        "p_value": formatting.p_value,
        "progress": progress,
    }
    return environment.get_template("report.html.j2")


def _sections(comparisons: Sequence[Comparison]) -> list[_Section]:
    listed = [disagreements(comparison) for comparison in comparisons]
    limit = SHOWN // max(1, sum(bool(each) for each in listed))
    return [_section(*each, limit) for each in zip(comparisons, listed, strict=True)]


def _section(comparison: Comparison, differing: list[Disagreement], limit: int) -> _Section:
    outcomes = [row.outcome for row in comparison.rows]
    objects = _objects(outcomes)
    plots = (tradeoff_plot(comparison, width=width, height=height) for width, height in _PLOT_SIZES)
    lost = {each.method: [sample for sample in each.samples if sample.score is None] for each in outcomes}
    return _Section(
        comparison=comparison,
        caveats=caveats_of(comparison),
        provenance=task_provenance(outcomes),
        plots=[plot for plot in plots if plot],
        companions=formatting.companions(comparison),
        tested=list(next((row.mcnemar for row in comparison.rows if row.mcnemar), {})),
        parsers=_parsed(comparison),
        objects=dict(list(objects.items())[:_OBJECTS]),
        further_objects=max(0, len(objects) - _OBJECTS),
        costs=_costs(outcomes),
        activity=_activity(outcomes),
        unanswered={method: samples for method, samples in lost.items() if samples},
        shown=differing[:limit],
        differing=len(differing),
    )


def _others(comparisons: Sequence[Comparison]) -> list[str]:
    """All methods whose answers are shown beside the answers of a first one."""
    return list(dict.fromkeys(row.outcome.method for each in comparisons for row in each.others))


def _parsed(comparison: Comparison) -> list[AnyMetric]:
    """The metrics of the whole task that parsers give, once each."""
    figures = (each for row in comparison.rows for several in row.parsers.values() for each in several)
    metrics = (each.metric for each in figures if each.metric.group == comparison.groups[0])
    return list({metric.name: metric for metric in metrics}.values())


def _objects(outcomes: list[Outcome]) -> dict[str, list[_Share | None]]:
    """Errors by object and method, the most frequent objects first."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update({name: of for name, (_, of) in outcome.objects.items()})
    rates = [wrong / of for outcome in outcomes for wrong, of in outcome.objects.values() if of]
    longest = max(rates, default=0) or 1

    def share(outcome: Outcome, name: str) -> _Share | None:
        wrong, of = outcome.objects.get(name, (0, 0))
        return _Share(wrong, of, round(100 * wrong / of / longest, 1)) if of else None

    names = sorted(totals, key=lambda name: (-totals[name], name))
    return {name: [share(outcome, name) for outcome in outcomes] for name in names}


def _costs(outcomes: list[Outcome]) -> dict[str, list[str]]:
    """Each cost by method, with its ratio to the first one."""
    relative = [relative_costs(outcome, outcomes[0]) for outcome in outcomes]
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.costs)

    def shown(index: int, name: str) -> str:
        text = formatting.cost(name, outcomes[index].costs.get(name))
        times = relative[index].get(name) if index else None
        return f"{text} (x{times:.2f})" if times else text

    return {name: [shown(index, name) for index in range(len(outcomes))] for name in names}


def _activity(outcomes: list[Outcome]) -> dict[str, list[str]]:
    """Each figure of activity by method; figures that apply to none are left out."""
    flat = [_flat(_only(rounded(outcome.activity))) for outcome in outcomes]
    names = dict.fromkeys(
        name for each in flat for name, value in each.items() if value not in (None, [], {})
    )
    return {name: [_brief(each.get(name)) for each in flat] for name in names}


def _only(activity: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of a single method without its name, so that methods share lines."""
    values = list(activity.values())
    return values[0] if len(values) == 1 and isinstance(values[0], dict) else activity


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys such as `vcd: steps`."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        found |= _flat(value, f"{name}: ") if isinstance(value, dict) and value else {name: value}
    return found


def _brief(value: Any) -> str:
    if value in (None, [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(_runs(value) if all(type(each) is int for each in value) else map(_brief, value))
    return str(value)


def _runs(values: list[int]) -> list[str]:
    """Whole numbers with those that follow each other as ranges: 1, 4 to 7."""
    starts = [index for index, value in enumerate(values) if not index or value != values[index - 1] + 1]
    runs = [values[start:end] for start, end in pairwise([*starts, len(values)])]
    return [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_ANSWER:
        return text
    return f"{text[:_LONGEST_ANSWER]} … ({len(text):,} characters)"


def _json(value: Any) -> str:
    return json.dumps(rounded(value), indent=2, ensure_ascii=False)
