"""The results of a run as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template
from markupsafe import Markup

from vlmfix.atomic import write_bytes
from vlmfix.evaluation.analysis.comparison import Comparison
from vlmfix.evaluation.analysis.results import RankMetric, SampleResult
from vlmfix.evaluation.analysis.statistics import RESAMPLES
from vlmfix.evaluation.report import task_tables
from vlmfix.evaluation.report.caveats import warnings_of
from vlmfix.evaluation.report.disagreements import (
    Disagreement,
    SharedFailure,
    disagreements,
    shared_failures,
    thumbnail,
)
from vlmfix.evaluation.report.formatting import number
from vlmfix.evaluation.report.html_tables import HtmlTable
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.report.page_style import page_environment, page_style
from vlmfix.evaluation.report.provenance import run_provenance, task_facts, task_sources, unlike
from vlmfix.evaluation.report.selection import Selection, select

if TYPE_CHECKING:
    from vlmfix.evaluation.report.plots import Plot

SHOWN = 200
"""Samples in the list of disagreements, over all tasks; each brings a picture along."""
SHARED = 60
"""Samples in the list of those that no method has right, over all tasks."""

_OBJECTS = 20
_UNANSWERED = 50
_LONGEST_ANSWER = 1500


@dataclass(frozen=True)
class _Details:
    """A table that is opened by its summary."""

    summary: str
    table: HtmlTable
    is_open: bool = False


@dataclass(frozen=True)
class _Section:
    """What the page shows of one task."""

    comparison: Comparison
    subset: str
    facts: list[str]
    sources: dict[str, str]
    headline: HtmlTable | None
    details: list[_Details]
    agreeing: list[str]
    plots: list[Plot]
    notes: list[str]
    unanswered: dict[str, list[SampleResult]]
    shown: list[Disagreement]
    differing: int
    shared: list[SharedFailure]
    failing: int

    @property
    def tables(self) -> list[HtmlTable]:
        """All of its tables."""
        return [*([self.headline] if self.headline else []), *(each.table for each in self.details)]


def write_report(
    path: str | Path, comparisons: Sequence[Comparison], *, title: str, caveats: Sequence[str] = ()
) -> None:
    """Write the page, with pictures and all else in the file, and its plots as files in a folder beside it.

    Args:
        path: of the HTML file; its folder exists.
        comparisons: from `vlmfix.evaluation.analysis.comparison.compare`.
        title: of the page.
        caveats: sentences at its top.
    """
    from vlmfix.evaluation.report.plots import write_plots

    path = Path(path)
    rows = [row for comparison in comparisons for row in comparison.rows]
    script = files("vlmfix.evaluation.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    sections = _sections(comparisons)
    tables = [table for section in sections for table in section.tables]
    page = _template().render(
        title=title,
        caveats=caveats,
        provenance=run_provenance([row.outcome for row in rows]),
        sections=sections,
        others=list(dict.fromkeys(row.outcome.method for each in comparisons for row in each.others)),
        longest_list=_UNANSWERED,
        resamples=RESAMPLES,
        unit=" or ".join(dict.fromkeys(row.outcome.unit for row in rows)),
        paired=any(each.rows[1:] for each in comparisons),
        tested=any(row.best for row in rows),
        has_ranks=any(isinstance(each.metric, RankMetric) for row in rows for each in row.figures),
        style=page_style(),
        stacked=sorted({table.stacked_below for table in tables}),
        blocks=sorted({table.blocks_below for table in tables}),
        script=Markup(script),
        thumbnail=functools.cache(thumbnail),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_plots([plot for section in sections for plot in section.plots], path)
    write_bytes(path, page.encode("utf-8", "replace"))  # answers may hold lone surrogates


@functools.cache
def _template() -> Template:
    """The template of the page, compiled once."""
    environment = page_environment("vlmfix.evaluation.report")
    environment.filters |= {"shortened": _shortened, "json": _json}
    environment.globals |= {"number": number, "unlike": unlike}
    return environment.get_template("report.html.j2")


def _sections(comparisons: Sequence[Comparison]) -> list[_Section]:
    differing = [disagreements(comparison) for comparison in comparisons]
    failing = [shared_failures(comparison) for comparison in comparisons]
    limits = SHOWN // max(1, sum(map(bool, differing))), SHARED // max(1, sum(map(bool, failing)))
    names = _names(comparisons)
    return [_section(*each, limits) for each in zip(comparisons, names, differing, failing, strict=True)]


def _section(
    comparison: Comparison,
    name: str,
    differing: list[Disagreement],
    failing: list[SharedFailure],
    limits: tuple[int, int],
) -> _Section:
    outcomes = [row.outcome for row in comparison.rows]
    selection = select(comparison)
    details, agreeing = _details(comparison, selection)
    inactive = [
        f"{each.method} never acted: its figures say nothing about the method."
        for each in outcomes
        if each.inactive
    ]
    lost = {each.method: [sample for sample in each.samples if sample.score is None] for each in outcomes}
    return _Section(
        comparison=comparison,
        subset=outcomes[0].subset,
        facts=task_facts(outcomes),
        sources=task_sources(outcomes),
        headline=task_tables.headline_table(comparison, selection, selection.shown),
        details=details,
        agreeing=agreeing,
        plots=_plots(comparison, selection, name),
        notes=[*inactive, *warnings_of(comparison)],
        unanswered={method: samples for method, samples in lost.items() if samples},
        shown=differing[: limits[0]],
        differing=len(differing),
        shared=failing[: limits[1]],
        failing=len(failing),
    )


def _details(comparison: Comparison, selection: Selection) -> tuple[list[_Details], list[str]]:
    """The tables behind the headline, and the methods on which all parsers agree."""
    tables = task_tables
    parsers, agreeing = tables.parser_table(comparison, selection)
    count = len(selection.further)
    found = {
        f"{count} further method{'' if count == 1 else 's'}": tables.headline_table(
            comparison, selection, selection.further
        ),
        "Answers and costs": tables.companion_table(comparison, selection),
        "Best baselines": tables.best_baseline_table(comparison, selection),
        "Repeats": tables.spread_table(comparison, selection),
        "Tests": tables.tests_table(comparison, selection),
        f"By group: {', '.join(comparison.groups[1:])}": tables.group_table(comparison, selection),
        "By object": tables.object_table(comparison, selection, _OBJECTS),
        "By parser": parsers,
        "What the methods did": tables.activity_table(comparison, selection),
    }
    opened = "" if selection.further else "Answers and costs"
    return [_Details(name, table, name == opened) for name, table in found.items() if table], agreeing


def _plots(comparison: Comparison, selection: Selection, name: str) -> list[Plot]:
    from vlmfix.evaluation.report.calibration_plot import calibration_plot
    from vlmfix.evaluation.report.tradeoff_plot import tradeoff_plot

    plots = (
        tradeoff_plot(comparison, selection, f"{name}-tradeoff"),
        calibration_plot(comparison, selection, f"{name}-calibration"),
    )
    return [plot for plot in plots if plot]


def _names(comparisons: Sequence[Comparison]) -> list[str]:
    """A name for the files of each: its task, and its protocol where a task has several."""
    tasks = [comparison.task for comparison in comparisons]
    return [
        each.task if tasks.count(each.task) == 1 else f"{each.task}-{each.protocol}" for each in comparisons
    ]


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_ANSWER:
        return text
    return f"{text[:_LONGEST_ANSWER]} … ({len(text):,} characters)"


def _json(value: Any) -> str:
    return json.dumps(rounded(value), indent=2, ensure_ascii=False)
