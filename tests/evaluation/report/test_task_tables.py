"""Tables of the page: which methods stand where, what is marked, and how wide they are."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support import outcomes
from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report import task_tables as tables
from vlmfix.evaluation.report.html_tables import Body, Cell, Entry, Head, HtmlTable, TableRow, width_of
from vlmfix.evaluation.report.selection import MOST, select


def many(count: int = 14) -> Comparison:
    """Greedy, two baselines, the second one better than greedy, and methods from the worst to the best."""
    several = [
        outcomes.captions(images=60, care=0.3, baseline_of=""),
        outcomes.captions("short", images=60, care=0.0, baseline_of="", parameters={"cut": 1}),
        outcomes.captions("cut(m3)", images=60, care=0.5, baseline_of="m3", parameters={"cut": 2}),
    ]
    several += [outcomes.captions(f"m{index}", images=60, care=0.2 + 0.05 * index) for index in range(count)]
    [comparison] = compare(several)
    return comparison


def labels(table: HtmlTable | None) -> list[list[str]]:
    assert table is not None
    return [[row.label for row in body.rows] for body in table.bodies]


def test_ten_methods_in_the_first_table_and_the_best_first() -> None:
    comparison = many()
    selection = select(comparison)
    shown = tables.headline_table(comparison, selection, selection.shown)
    rates = {row.outcome.method: row.figures[0].estimate.value for row in comparison.rows[3:]}
    ordered = sorted(rates, key=rates.__getitem__)  # CHAIRs, stable
    assert ordered[0] == "m13"
    assert labels(shown) == [["greedy", "cut(m3)"], ordered[:8]]
    assert sum(map(len, labels(shown))) == MOST
    further = tables.headline_table(comparison, selection, selection.further)
    assert labels(further) == [["short"], ordered[8:]]
    assert shown is not None
    tags = {row.label: row.tags for body in shown.bodies for row in body.rows}
    assert tags["greedy"] == ["reference", "baseline"]
    assert tags["cut(m3)"] == ["best baseline"]
    assert tags["m13"] == ["only partly better than greedy"]


def test_few_methods_are_all_shown() -> None:
    comparison = many(3)
    selection = select(comparison)
    assert labels(tables.headline_table(comparison, selection, selection.shown)) == [
        ["greedy", "cut(m3)", "short"],
        ["m2", "m1", "m0"],
    ]
    assert selection.further == []
    assert tables.headline_table(comparison, selection, selection.further) is None


def test_greedy_is_shown_wherever_it_stands() -> None:
    names = [f"m{index}" for index in range(12)]
    several = [outcomes.captions(name, images=30, care=0.8) for name in names]
    several.append(outcomes.captions(images=30, care=0.1, baseline_of=""))
    [comparison] = compare(several)
    selection = select(comparison)
    assert [row.outcome.method for row in selection.shown][:2] == ["m0", "greedy"]
    assert len(selection.shown) == MOST


def test_one_mark_a_method_on_the_headline_metric_alone() -> None:
    [comparison] = compare(
        [
            outcomes.yes_no(images=60, yes_bias=0.8, baseline_of=""),
            outcomes.yes_no("good", images=60, yes_bias=0.2),
            outcomes.yes_no("bad", images=60, yes_bias=0.95),
            outcomes.yes_no("same", images=60, yes_bias=0.8),
        ]
    )
    selection = select(comparison)
    table = tables.headline_table(comparison, selection, selection.shown)
    assert table is not None
    marked = {
        row.label: [[entry.mark for entry in cell.entries if entry.mark] for cell in row.cells]
        for body in table.bodies
        for row in body.rows
    }
    columns = len(table.heads)
    assert marked == {
        "greedy": [[]] * columns,
        "good": [["better"]] + [[]] * (columns - 1),
        "bad": [["worse"]] + [[]] * (columns - 1),
        "same": [[]] * columns,
    }
    marks = {method: mark.marked for method, mark in comparison.main_marks.items()}
    assert marks == {"good": True, "bad": True, "same": False}
    p = {row.label: row.cells[0].entries[-1].value for row in table.bodies[1].rows}
    assert p["good"] == "p <0.001"
    groups = tables.group_table(comparison, selection)
    assert groups is not None
    assert not any(
        entry.mark
        for body in groups.bodies
        for row in body.rows
        for cell in row.cells
        for entry in cell.entries
    )
    tests = tables.tests_table(comparison, selection)
    assert tests is not None
    reasons = {row.label: row.cells[0].entries[0].value for row in tests.bodies[0].rows}
    assert reasons["good"].startswith("marked: the interval excludes 0 and the corrected p is ")
    assert reasons["same"] == "no mark: they differ on 0 images; a mark needs 6"


def test_best_baselines_other_than_the_reference() -> None:
    comparison = many(5)
    selection = select(comparison)
    table = tables.best_baseline_table(comparison, selection)
    assert labels(table) == [["m3"]]
    assert table is not None
    [row] = table.bodies[0].rows
    assert row.tags[0].endswith(" cut(m3)")
    assert not any(entry.mark for cell in row.cells for entry in cell.entries)
    [alone] = compare([outcomes.captions(baseline_of=""), outcomes.captions("x", care=0.9)])
    assert tables.best_baseline_table(alone, select(alone)) is None


def test_columns_without_offsets_are_empty_where_there_are_no_margins() -> None:
    first = outcomes.with_margins(outcomes.yes_no(images=20))
    [comparison] = compare([first, outcomes.yes_no("x", images=20, yes_bias=0.4)])
    selection = select(comparison)
    table = tables.headline_table(comparison, selection, selection.shown)
    assert table is not None
    heads = [head.name for head in table.heads]
    at = heads.index("AUC, %")
    assert heads[at : at + 3] == ["AUC, %", "average precision, %", "accuracy, fitted threshold, %"]
    rows = {row.label: row.cells for body in table.bodies for row in body.rows}
    assert all(cell.entries for cell in rows["greedy"])
    assert [bool(cell.entries) for cell in rows["x"][at - 1 : at + 3]] == [True, False, False, False]


def test_parsers_that_agree_share_a_line() -> None:
    first, second = (outcomes.yes_no(name, images=20) for name in ("greedy", "x"))
    official, strict = first.parsers["official"], first.parsers["strict"]
    three = {"official": official, "strict": strict, "lmms": official}
    [comparison] = compare(
        [
            dataclasses.replace(first, parsers=three),
            dataclasses.replace(second, parsers={"official": official, "lmms": official}),
        ]
    )
    table, agreeing = tables.parser_table(comparison, select(comparison))
    assert table is not None
    assert [body.title for body in table.bodies] == ["greedy"]
    assert labels(table) == [["official, lmms", "strict"]]
    assert agreeing == ["x"]
    [alike] = compare([dataclasses.replace(second, parsers={"official": official, "lmms": official})])
    assert tables.parser_table(alike, select(alike)) == (None, ["x"])
    [none] = compare([dataclasses.replace(second, parsers={})])
    assert tables.parser_table(none, select(none)) == (None, [])


def test_objects_of_the_methods_that_are_shown() -> None:
    comparison = many()
    table = tables.object_table(comparison, select(comparison), most=2)
    assert table is not None
    assert len(table.heads) == MOST
    assert labels(table) == [["dining table", "fork"]]
    assert table.caption.endswith("further objects are in metrics.json")
    bars = [cell.bar for row in table.bodies[0].rows for cell in row.cells]
    assert max(bar for bar in bars if bar is not None) == 100


def test_what_parts_of_a_method_did() -> None:
    def outcome(method: str, activity: dict[str, object]) -> Outcome:
        return outcomes.captions(method, activity=activity)

    figures = {"samples": 12_000, "site share": 0.12345, "skipped": {"no_image": 2}, "kl_max": None}
    [comparison] = compare(
        [outcome("greedy", {}), outcome("var", {"var": figures}), outcome("a+b", {"a": figures, "b": {}})]
    )
    table = tables.activity_table(comparison, select(comparison))
    assert table is not None
    assert [head.name for head in table.heads] == ["samples", "site share", "skipped"]
    found = {(row.label, *row.tags): row.cells for row in table.bodies[0].rows}
    assert list(found) == [("var",), ("a+b", "a"), ("a+b", "b")]
    texts = [cell.entries[0].value for cell in found["var",]]
    assert texts == ["12,000", "0.123", "no_image: 2"]
    assert not any(cell.entries for cell in found["a+b", "b"])
    [idle] = compare([outcome("greedy", {})])
    assert tables.activity_table(idle, select(idle)) is None


def test_widths() -> None:
    assert width_of("85.2") == pytest.approx(3.55)
    assert width_of("[83.1, 87.0]") > width_of("[3.1, 7.0]") > width_of("") == 0
    cell = Cell((Entry("85.2", "[83.1, 87.0]"), Entry("+1.2", "[0.3, 2.1]", "change", "better")))
    table = HtmlTable("", "method", [Head("accuracy, %")] * 3, [Body([TableRow("a", [cell] * 3)])])
    assert table.has_intervals
    assert table.blocks_below < table.stacked_below
    assert table.blocks_below % 4 == table.stacked_below % 4 == 0
    more = HtmlTable("", "method", [Head("accuracy, %")] * 4, [Body([TableRow("a", [cell] * 4)])])
    assert more.blocks_below > table.blocks_below
    plain = HtmlTable("", "method", [Head("n")], [Body([TableRow("a", [Cell.of("12")])])])
    assert not plain.has_intervals
    assert plain.blocks_below == plain.stacked_below
    words = HtmlTable("", "m", [Head("why")], [Body([TableRow("a", [Cell.of("word " * 40)])])], prose=True)
    assert words.blocks_below <= 40
    assert Cell.of("-") == Cell()
