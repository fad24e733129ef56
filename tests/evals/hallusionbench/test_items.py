"""HallusionBench: items of files, right and broken."""

from __future__ import annotations

from typing import Any

import pytest
from vlmfix.evals.hallusionbench.dataset import FILES
from vlmfix.evals.hallusionbench.figures import UNITS
from vlmfix.evals.hallusionbench.items import Item, name_of, read_items

from tests.support.hallusionbench import vector
from tests.support.paths import OFFICIAL
from vlmfix.evaluation.files.readers import Record, read_records

FILE = OFFICIAL / "hallusionbench" / FILES[0]


def items(rows: list[dict[str, Any]]) -> list[Item]:
    return read_items(Record(row, f"record {number}") for number, row in enumerate(rows, 1))


def test_the_fields_of_an_item() -> None:
    found = items(vector())
    assert [item.name for item in found] == [
        "VD/chart/0/0/0",
        "VD/chart/0/0/1",
        "VD/chart/0/1/0",
        "VD/chart/0/1/1",
        "VS/chart/0/0/0",
        "VS/chart/0/1/0",
    ]
    assert (found[0].set, found[0].group) == ("VD/chart/0", ("VD/chart/0", "0"))
    assert [item.target for item in found] == ["yes", "yes", "no", "no", "yes", "yes"]
    assert [item.has_image for item in found] == [True, True, True, True, False, True]
    assert (found[0].filename, found[4].filename) == ("./VD/chart/0_0.png", None)


def test_numbers_are_the_same_as_texts() -> None:
    numbers = ("set_id", "figure_id", "question_id", "visual_input", "gt_answer")
    rows = [row | {name: int(row[name]) for name in numbers} for row in vector()]
    assert items(rows) == items(vector())
    assert name_of(Record(rows[3], "here")) == "VD/chart/0/1/1"


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"category": "VX"}, 'record 1: category is "VX"; it must be VD or VS'),
        (0, {"visual_input": "3"}, 'record 1: visual_input is "3"; it must be 0 or 1 or 2'),
        (0, {"gt_answer": "2"}, 'record 1: the label is "2"; it must be yes or no'),
        (0, {"question": " "}, 'record 1: question is " "; it must be a text or a whole number'),
        (0, {"set_id": None}, "record 1: set_id is null; it must be a text or a whole number"),
        (0, {"set_id": True}, "record 1: set_id is true"),
        (0, {"filename": None}, "record 1: filename is null"),
        (
            0,
            {"visual_input": "0"},
            "visual_input of VD/chart/0/0/0 is 0; it must be 1 or 2, as it is not",
        ),
        (
            4,
            {"visual_input": "1"},
            "visual_input of VS/chart/0/0/0 is 1; it must be 0, as it is figure 0",
        ),
        (1, {"question_id": "0"}, "record 2: the item VD/chart/0/0/0 comes twice"),
        (1, {"figure_id": "2"}, "record 2: VD/chart/0/2/1 has no item of the same question on figure 0"),
    ],
)
def test_broken_items_are_refused(number: int, change: dict[str, Any], message: str) -> None:
    rows = vector()
    rows[number] |= change
    with pytest.raises(ValueError, match=message):
        items(rows)


def test_a_missing_field_is_named() -> None:
    rows = vector()
    del rows[2]["figure_id"]
    with pytest.raises(ValueError, match="record 3: no figure_id; expected the key 'figure_id'"):
        items(rows)


@pytest.mark.skipif(not FILE.exists(), reason=f"no {FILE}")
def test_the_structure_of_the_official_file() -> None:
    found = read_items(read_records(FILE))
    metas = [vars(item) for item in found]
    assert len(found) == 1129
    assert sum(not item.has_image for item in found) == 178
    figures = {UNITS["figure"](meta) for meta, item in zip(metas, found, strict=True) if item.has_image}
    assert len(figures) == 346
    assert len({UNITS["question"](meta) for meta in metas}) == 455
    assert sum(item.visual_input == "2" for item in found) == 504
