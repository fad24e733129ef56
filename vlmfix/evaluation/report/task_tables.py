"""The tables of one task in the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmfix.evaluation.analysis.comparison import Comparison, Row, find
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.marks import Mark
from vlmfix.evaluation.analysis.results import AnyMetric
from vlmfix.evaluation.report import formatting
from vlmfix.evaluation.report.caveats import progress
from vlmfix.evaluation.report.html_tables import Body, Cell, Entry, Head, HtmlTable, TableRow
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.report.selection import Selection, is_baseline


def headline_table(comparison: Comparison, selection: Selection, rows: Sequence[Row]) -> HtmlTable | None:
    """The headline figures of some methods; the mark, and the p behind it, at the first figure alone."""
    group, main = comparison.groups[0] if comparison.groups else "", comparison.main
    if main is None or not rows:
        return None
    metrics, marks = comparison.headline(group), comparison.main_marks
    first = comparison.rows[0]

    def row_of(row: Row) -> TableRow:
        cells = [
            _figure_cell(
                row.figure(each.name, group), marks.get(row.outcome.method) if each is main else None
            )
            for each in metrics
        ]
        tags = ["reference"] if row is first else []
        if row is selection.best_baseline:
            tags.append("best baseline")
        elif is_baseline(row):
            tags.append("baseline")
        if row.best is not None:
            tags.append(row.best.words)
        if row.unpaired:
            tags.append("not paired")
        if row.outcome.subset != first.outcome.subset:
            tags.append(row.outcome.subset or "all images")
        return _row(row, cells, tags)

    bodies = [
        [row for row in rows if row is first or is_baseline(row)],
        [row for row in rows if row is not first and not is_baseline(row)],
    ]
    caption = f"{comparison.task}{f', {group}' if group else ''}: headline figures"
    if len(comparison.rows) > 1:
        caption += f", and below them the differences to {first.outcome.method}"
    return HtmlTable(
        caption, "method", _heads(metrics), [Body(list(map(row_of, body))) for body in bodies if body]
    )


def best_baseline_table(comparison: Comparison, selection: Selection) -> HtmlTable | None:
    """Differences of tested methods to the best of their baselines, where that is not the reference."""
    reference = comparison.rows[0].outcome.method
    tested = [(row, row.best) for row in selection.all if row.best and row.best.baseline != reference]
    if not tested:
        return None
    metrics = list({each.metric.name: each.metric for _, best in tested for each in best.figures}.values())
    rows = []
    for row, best in tested:
        by_name = {each.metric.name: each for each in best.figures}
        cells = []
        for index, metric in enumerate(metrics):
            figure = by_name.get(metric.name)
            entries = () if figure is None else _change(figure)
            cells.append(Cell((*entries, *(_test(best.mark) if index == 0 else ()))))
        tags = [best.words] + ([f"no mark: {best.mark.reason}"] if best.mark.contradicts else [])
        rows.append(_row(row, cells, tags))
    caption = (
        f"{comparison.task}: differences to the best baseline of a method, where that is not {reference}"
    )
    return HtmlTable(caption, "method", _heads(metrics), [Body(rows)])


def companion_table(comparison: Comparison, selection: Selection) -> HtmlTable | None:
    """Figures without a better direction, shares of samples, and costs."""
    texts = dict(zip(map(id, comparison.rows), formatting.companions(comparison), strict=True))
    names = list(texts[id(comparison.rows[0])])
    rows = [_row(row, [Cell.of(text) for text in texts[id(row)].values()]) for row in selection.all]
    caption = f"{comparison.task}: answers and costs"
    return HtmlTable(caption, "method", list(map(Head, names)), [Body(rows)]) if names else None


def spread_table(comparison: Comparison, selection: Selection) -> HtmlTable | None:
    """Headline figures over several repeats of each answer."""
    spreads = [each.spread for each in comparison.rows[0].figures if each.spread]
    if not spreads or comparison.main is None:
        return None
    group, metrics = comparison.main.group, comparison.headline(comparison.main.group)
    rows = []
    for row in selection.all:
        figures = [row.figure(each.name, group) for each in metrics]
        rows.append(_row(row, [Cell.of(formatting.spread_text(each) if each else "-") for each in figures]))
    caption = f"{comparison.task}: mean and standard deviation over {len(spreads[0].values)} repeats"
    return HtmlTable(caption, "method", _heads(metrics), [Body(rows)])


def tests_table(comparison: Comparison, selection: Selection) -> HtmlTable | None:
    """Why there is a mark or none, and McNemar's tests."""
    marks, main = comparison.main_marks, comparison.main
    if main is None or not marks:
        return None
    groups = list(next((row.mcnemar for row in comparison.rows if row.mcnemar), {}))
    rows = []
    for row in selection.all:
        mark = marks.get(row.outcome.method)
        if mark is not None:
            tests = [row.mcnemar.get(group) for group in groups]
            texts = [
                "-" if test is None else f"{test.better} : {test.worse}, p {formatting.p_value(test.p)}"
                for test in tests
            ]
            reason = f"{'marked' if mark.marked else 'no mark'}: {mark.reason}"
            rows.append(_row(row, [Cell.of(reason), *map(Cell.of, texts)]))
    heads = [Head(f"difference in {main.name}"), *(Head(f"McNemar, {group or 'all'}") for group in groups)]
    caption = f"{comparison.task}: tests against {comparison.rows[0].outcome.method}"
    return HtmlTable(caption, "method", heads, [Body(rows)], prose=True)


def group_table(comparison: Comparison, selection: Selection) -> HtmlTable | None:
    """Headline figures by split or type."""
    groups = comparison.groups[1:]
    if not groups:
        return None
    metrics = list({each.name: each for group in groups for each in comparison.headline(group)}.values())
    bodies = [
        Body(
            [
                _row(row, [_figure_cell(row.figure(each.name, group)) for each in metrics])
                for row in selection.all
            ],
            group,
        )
        for group in groups
    ]
    return HtmlTable(f"{comparison.task}: figures by group", "method", _heads(metrics), bodies)


def parser_table(comparison: Comparison, selection: Selection) -> tuple[HtmlTable | None, list[str]]:
    """The same answers under all parsers, and the methods for which all parsers agree.

    Parsers with equal figures share a line; methods for which all agree have none.
    """
    group = comparison.groups[0] if comparison.groups else ""
    figures = (each for row in comparison.rows for several in row.parsers.values() for each in several)
    metrics = list({each.metric.name: each.metric for each in figures if each.metric.group == group}.values())
    bodies, agreed = [], []
    for row in selection.all:
        alike: dict[Any, list[str]] = {}
        for parser, several in row.parsers.items():
            key = tuple((each.metric.name, each.metric.group, each.estimate) for each in several)
            alike.setdefault(key, []).append(parser)
        if len(alike) == 1:
            agreed.append(row.outcome.method)
        elif alike:
            lines = [
                TableRow(
                    ", ".join(parsers),
                    [_figure_cell(find(row.parsers[parsers[0]], each.name, group)) for each in metrics],
                    is_faint=row.outcome.inactive,
                )
                for parsers in alike.values()
            ]
            bodies.append(Body(lines, row.outcome.method))
    caption = f"{comparison.task}: the same answers under all parsers"
    return (HtmlTable(caption, "parser", _heads(metrics), bodies) if bodies else None), agreed


def object_table(comparison: Comparison, selection: Selection, most: int) -> HtmlTable | None:
    """Shares of wrong answers by object, the most frequent first, for the methods of the first table."""
    outcomes = [row.outcome for row in selection.shown]
    totals: dict[str, int] = {}
    for outcome in outcomes:
        for name, (_, of) in outcome.objects.items():
            totals[name] = totals.get(name, 0) + of
    names = sorted(totals, key=lambda name: (-totals[name], name))
    if not names:
        return None
    counts = [[outcome.objects.get(name, (0, 0)) for outcome in outcomes] for name in names[:most]]
    longest = max((wrong / of for each in counts for wrong, of in each if of), default=0) or 1

    def cell(wrong: int, of: int) -> Cell:
        if not of:
            return Cell()
        share = wrong / of
        entry = Entry(formatting.number(share, percent=True), f"{wrong}/{of}")
        return Cell((entry,), round(100 * share / longest, 1))

    rows = [
        TableRow(name, [cell(*each) for each in own]) for name, own in zip(names[:most], counts, strict=True)
    ]
    left = "objects" if len(names) > most else "methods" if selection.further else ""
    caption = f"{comparison.task}: wrong answers by object, percent and counts"
    if left:
        caption += f"; further {left} are in metrics.json"
    return HtmlTable(caption, "object", [Head(outcome.method) for outcome in outcomes], [Body(rows)])


def activity_table(comparison: Comparison, selection: Selection) -> HtmlTable | None:
    """What each method did, or each part of one; figures that apply to none are left out."""
    found: list[tuple[Row, str, dict[str, Any]]] = []
    for row in selection.all:
        parts = rounded(row.outcome.activity)
        for name, figures in parts.items():
            found.append((row, name if len(parts) > 1 else "", figures))
    heads = list(
        dict.fromkeys(name for _, _, each in found for name, value in each.items() if value not in (None, {}))
    )
    if not heads:
        return None
    rows = [
        _row(row, [Cell.of(_brief(each.get(name))) for name in heads], [part] if part else [])
        for row, part, each in found
    ]
    caption = f"{comparison.task}: what the methods did"
    return HtmlTable(caption, "method", [Head(name.replace("_", " ")) for name in heads], [Body(rows)])


def _row(row: Row, cells: Sequence[Cell], tags: Sequence[str] = ()) -> TableRow:
    """A row of a method, with what has to be known of its figures."""
    state = ["inactive"] if row.outcome.inactive else []
    if done := progress(row.outcome):
        state.append("partial ({:,} of {:,})".format(*done))
    return TableRow(row.outcome.method, cells, [*tags, *state], row.outcome.inactive)


def _heads(metrics: Sequence[AnyMetric]) -> list[Head]:
    return [
        Head(formatting.title(each), "lower is better" if each.better == "lower" else "") for each in metrics
    ]


def _figure_cell(figure: Figure | None, mark: Mark | None = None) -> Cell:
    """The value and the difference, each with its interval; the mark of the latter, and its p."""
    if figure is None:
        return Cell()
    if not figure.is_defined:
        return Cell.of("undefined")
    marked = formatting.verdict(figure) if mark is not None and mark.marked else ""
    return Cell((Entry(*formatting.value_texts(figure)), *_change(figure, marked), *_test(mark)))


def _change(figure: Figure, marked: str = "") -> tuple[Entry, ...]:
    if figure.difference is None:
        return ()
    return (Entry(*formatting.difference_texts(figure), "change", marked),)


def _test(mark: Mark | None) -> tuple[Entry, ...]:
    if mark is None or mark.p is None:
        return ()
    return (Entry(f"p {formatting.p_value(mark.p)}", kind="test"),)


def _brief(value: Any) -> str:
    """A figure of what a method did."""
    if value in (None, {}):
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_brief(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
