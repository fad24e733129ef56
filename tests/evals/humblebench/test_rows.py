"""HumbleBench: rows of files, right and broken, and without their right options."""

from __future__ import annotations

from typing import Any

import pytest
from vlmfix.evals.humblebench.rows import Row, check_variant, options_of, read_rows, without_answer

from tests.support.humblebench import DOG, row, rows
from tests.support.humblebench import without_answer as removed
from vlmfix.evaluation.files.readers import Record


def read(content: list[dict[str, Any]], **options: bool) -> list[Row]:
    return read_rows((Record(each, f"line {at}") for at, each in enumerate(content, 1)), **options)


def test_the_fields_of_a_row() -> None:
    [found] = read([row(7, "B")])
    assert found == Row(7, "pictures/3.jpg", DOG, "B", "Relation", "line 1")
    assert read([row(7, "B", image="pictures/3.jpg")]) == [found]  # as older files have it


def test_without_the_right_option() -> None:
    [found] = read([row(1, "B")])
    left = without_answer(found)
    assert left.question == "What is left of the dog?\nA. cat\nC. tree\nD. man\nE. None of the above"
    assert left.label == "E"
    assert (found.label, found.question) == ("B", DOG)  # the row itself is as it was
    [none] = read([row(2, "E")])
    assert without_answer(none) == none
    [indented] = read([row(3, "B", question=DOG.replace("B.", "  B."))])
    assert without_answer(indented).question == left.question


def test_only_option_lines_are_taken() -> None:
    question = DOG.replace("What is", "B. What is")
    [found] = read([row(1, "B", question=question)])
    assert options_of(question) == {"A": "cat", "B": "car", "C": "tree", "D": "man", "E": "None of the above"}
    assert without_answer(found).question.startswith("B. What is")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "F"}, 'line 1: label is "F"; it must be one of A, B, C, D, E'),
        ({"label": "AB"}, 'line 1: label is "AB"'),
        ({"type": "Count"}, 'line 1: type is "Count"; it must be one of Object, Relation, Attribute'),
        ({"image": {"path": None}}, "line 1: the image is null; it must be a path"),
        ({"question": ""}, 'line 1: question is ""; it must be a text'),
        ({"question": "What?"}, "line 1: the question has no option A, B, C, D, E, and options are lines"),
        ({"question": DOG.replace("C.", "B.")}, "line 1: the option B comes twice in the question; keep one"),
        ({"question": DOG.replace("B. car\n", "")}, "no option B, .*; questions of humble_e lack one"),
        ({"question_id": None}, "line 1: the question id is null"),
    ],
)
def test_broken_rows_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read([row(1, "B") | change])


def test_ids_are_unique() -> None:
    with pytest.raises(ValueError, match="line 2: question_id 1 comes twice; ids must be unique"):
        read([row(1, "B"), row(1, "B")])


def test_rows_whose_right_options_are_gone() -> None:
    lacking = [removed(each) for each in rows()]
    assert [each.label for each in read(lacking, without_answers=True)] == ["E"] * 8
    with pytest.raises(ValueError, match="line 1: the question has no option A"):
        read(lacking)
    lacking[0]["question"] = DOG.replace("A. cat\n", "").replace("B. car\n", "")
    with pytest.raises(ValueError, match="line 1: the question has no option A, B"):
        read(lacking, without_answers=True)
    lacking[0]["question"] = DOG.replace("E. None of the above", "")
    with pytest.raises(ValueError, match="line 1: the question has no option E"):
        read(lacking, without_answers=True)


def test_old_names_of_types() -> None:
    old = ["Category", "Weather", "Location", "Category", "Relation", "Attribute", "Object", "Object"]
    with pytest.warns(UserWarning, match=r"count as Object: Category \(2\), Location \(1\), Weather \(1\)"):
        found = read(rows(type=old))
    assert [each.type for each in found] == ["Object"] * 4 + ["Relation", "Attribute", "Object", "Object"]


def test_labels_tell_the_variant() -> None:
    check_variant(["A", "E"], "humble", "a.jsonl")
    check_variant(["A", "E"], "humble_gn", "a.jsonl")
    check_variant(["E", "E"], "humble_e", "a.jsonl")
    check_variant([], "humble", "a.jsonl")
    for variant in ("humble", "humble_gn"):
        with pytest.raises(ValueError, match=r"every label of a.jsonl is E, so it is of humble_e"):
            check_variant(["E", "E"], variant, "a.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a.jsonl is not of humble_e, .*: 1 of 2 are others"):
        check_variant(["A", "E"], "humble_e", "a.jsonl")
