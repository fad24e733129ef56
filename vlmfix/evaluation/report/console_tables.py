"""The results of a run as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.results import AnyMetric
from vlmfix.evaluation.report.caveats import caveats, progress
from vlmfix.evaluation.report.formatting import (
    companions,
    difference_texts,
    p_value,
    title,
    value_texts,
    verdict,
)

_LABEL = 28
_NARROWEST = 9
_GAP = 3


def tables(comparisons: Sequence[Comparison], *, width: int = 100) -> Group:
    """The headline figures of every task with intervals and paired differences, and what stands beside them.

    Args:
        comparisons: from `vlmfix.evaluation.analysis.comparison.compare`.
        width: columns of the terminal; figures that do not fit go to a further table.

    Returns:
        To be printed by a `rich.console.Console`.
    """
    parts = [part for comparison in comparisons for part in _task(comparison, width)]
    return Group(*parts, *_legend(comparisons))


def _task(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    rows, groups = comparison.rows, comparison.groups
    name = comparison.title
    if groups and (headline := comparison.headline(groups[0])):
        marked = {method for method, mark in comparison.main_marks.items() if mark.marked}
        cells = {
            _head(each): [
                _cell(row.figure(each.name, groups[0]), each is headline[0] and row.outcome.method in marked)
                for row in rows
            ]
            for each in headline
        }
        yield from _fitting(f"{name}, {groups[0]}" if groups[0] else name, rows, cells, width)
        by_group: dict[str, dict[str, list[Text]]] = {}
        for group in groups[1:]:
            if main := comparison.main_of(group):
                cell = [_cell(row.figure(main.name, group)) for row in rows]
                by_group.setdefault(main.name, {})[group] = cell
        for main_name, cells in by_group.items():
            yield from _fitting(f"{name}: {main_name} by group", rows, cells, width)
    if tested := [row for row in rows if row.best]:
        labels = [
            Text(f"{row.outcome.method}\n{row.best.words} by {row.best.figures[0].metric.name}")
            for row in tested
            if row.best
        ]
        yield from _fitting(f"{name}: beside the best baseline", tested, _gains(tested), width, labels)
    beside = companions(comparison)
    texts = {head: [Text(each[head]) for each in beside] for head in beside[0]}
    if any(row.mcnemar for row in rows):
        texts = {"McNemar p (better : worse)": [_test(row, groups[0]) for row in rows]} | texts
    yield from _fitting(f"{name}: companion figures", rows, texts, width)
    inactive = [f"{row.outcome.method}: inactive, it never acted." for row in rows if row.outcome.inactive]
    for line in (*inactive, *caveats(comparison)):
        yield Text(line, style="yellow")
    yield Text()


def _fitting(
    name: str,
    rows: list[Row],
    columns: Mapping[str, list[Text]],
    width: int,
    labels: Sequence[Text] | None = None,
) -> Iterator[RenderableType]:
    """As many tables as it takes to show all columns, of about the same width."""
    labels = labels or [_label(row) for row in rows]
    breadth = min(_LABEL, max(map(_breadth, labels)))
    sizes = {
        head: max(_NARROWEST, *map(_breadth, cells), *map(cell_len, head.split()))
        for head, cells in columns.items()
    }
    for heads in even_chunks(sizes, width - breadth - 2 * _GAP):
        table = Table(box=SIMPLE_HEAD)
        table.add_column("method", overflow="fold", width=breadth)
        for head in heads:
            table.add_column(Text(head), justify="right", width=sizes[head])
        for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
            cells = [columns[head][index] for head in heads]
            table.add_row(label, *cells, style="dim" if row.outcome.inactive else None)
        yield Text(name, style="bold")
        yield table
        name = f"{name.removesuffix(', continued')}, continued"


def even_chunks(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Columns in the fewest chunks that fit, none wider than it must be.

    Args:
        sizes: widths by column.
        room: for the columns of a chunk and the gaps between them.
    """
    fewest = _chunks(sizes, room)
    narrower = (_chunks(sizes, smaller) for smaller in range(1, room))
    return next((chunks for chunks in narrower if len(chunks) == len(fewest)), fewest)


def _chunks(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    chunks: list[list[str]] = []
    left = 0
    for head, size in sizes.items():
        if not chunks or size + _GAP > left:
            chunks.append([])
            left = room
        chunks[-1].append(head)
        left -= size + _GAP
    return chunks


def _label(row: Row) -> Text:
    label = Text(row.outcome.method)
    if row.outcome.inactive:
        label.append("\ninactive")
    if done := progress(row.outcome):
        label.append(f"\npartial ({done[0]:,} of {done[1]:,})")
    return label


def _head(metric: AnyMetric) -> str:
    return title(metric) if metric.better == "higher" else f"{title(metric)} (lower is better)"


def _cell(figure: Figure | None, marked: bool = False) -> Text:
    """The value with its interval; below it the difference with its own."""
    if figure is None:
        return Text("-")
    if not figure.is_defined:
        return Text("undefined")
    text = Text(f"{' '.join(value_texts(figure))} ")
    return text if figure.difference is None else Text("\n").join((text, _difference(figure, marked)))


def _difference(figure: Figure, marked: bool) -> Text:
    """The difference with its interval, and a mark if it is more than chance."""
    if figure.difference is None:
        return Text("-")
    style = {"better": "green", "worse": "red"}.get(verdict(figure), "") if marked else ""
    return Text(f"{' '.join(difference_texts(figure))}{'*' if marked else ' '}", style=style)


def _gains(rows: list[Row]) -> dict[str, list[Text]]:
    """The differences of each method to the best of its baselines."""
    best = [row.best for row in rows if row.best]
    names = dict.fromkeys(each.metric.name for one in best for each in one.figures)
    found = {}
    for name in names:
        column = [next((each for each in one.figures if each.metric.name == name), None) for one in best]
        head = _head(next(each.metric for each in column if each is not None))
        found[head] = [
            Text("-") if each is None else _difference(each, one.mark.marked and each is one.figures[0])
            for each, one in zip(column, best, strict=True)
        ]
    return found


def _test(row: Row, group: str) -> Text:
    test = row.mcnemar.get(group)
    return Text(f"{p_value(test.p)} ({test.better} : {test.worse})" if test else "-")


def _legend(comparisons: Sequence[Comparison]) -> list[Text]:
    rows = [row for comparison in comparisons for row in comparison.rows]
    units = dict.fromkeys(row.outcome.unit for row in rows) or ("image",)
    lines = [f"[a, b]: 95 % interval, clustered by {' or '.join(units)}."]
    if any(figure.difference for row in rows for figure in row.figures):
        lines[0] += (
            " Second line: difference to the first method on the same samples, with its paired interval. * "
            "at the first figure: more than chance by interval and swap test, corrected for the number of "
            "methods (Holm); other figures carry no marks."
        )
    if any(row.best for row in rows):
        lines.append(
            "Best baseline: the one with the best first figure among those that explain a method by "
            "something trivial; baseline.NAME(METHOD) was made to match the method on the same samples."
        )
    if any(row.mcnemar for row in rows):
        lines.append("better : worse: questions that only this method, or only the first one, has right.")
    return [Text(line, style="dim") for line in lines]


def _breadth(text: Text) -> int:
    return max(map(cell_len, text.plain.split("\n")))
