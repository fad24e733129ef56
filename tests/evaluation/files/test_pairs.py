"""Answers beside the questions and labels that they are paired with."""

from __future__ import annotations

import pytest

from vlmfix.evaluation.files.answers import Answer, Keys, answer_of, check_pairs
from vlmfix.evaluation.files.readers import Record


def answer(number: int, **fields: str) -> Answer:
    return answer_of(Record({"answer": "A", "id": number, **fields}, f"a.json, record {number}"), Keys())


def check(pairs: list[tuple[Answer, str, str]]) -> list[str]:
    return check_pairs(pairs, lambda each: str(each.label), of="data.json")


def several(count: int, wrong: int) -> list[tuple[Answer, str, str]]:
    """So many pairs, of which the first few are of another question."""
    asked = ["Who?" if number < wrong else f"Is it {number}?\nAnswer." for number in range(count)]
    return [(answer(at, question=text), f"is it {at}", "A") for at, text in enumerate(asked)]


def test_pairs_that_belong_together() -> None:
    assert (
        check([(answer(1, question="Is it?\nA. yes\nAnswer briefly.", label="B"), "Is it?\nA. yes", "B")])
        == []
    )
    assert check([(answer(1, label="B"), "Is it?", "B")]) == []


def test_pairs_that_cannot_be_compared() -> None:
    assert check([(answer(1), "Is it?", "B")]) == [
        "pairing unchecked: the answers carry neither question nor label"
    ]


def test_any_other_label_is_refused() -> None:
    pairs = [(answer(number, label="B" if number else "C"), "Is it?", "B") for number in range(200)]
    with pytest.raises(ValueError, match=r"1 of 200 answers carry another label than data.json \(record 0\)"):
        check(pairs)


@pytest.mark.parametrize(("count", "wrong"), [(100, 2), (10, 1)])
def test_a_few_other_questions_are_told(count: int, wrong: int) -> None:
    [told] = check(several(count, wrong))
    assert told.startswith(
        f"a.json: {wrong} of {count} answers have another question than data.json (record 0"
    )


@pytest.mark.parametrize(("count", "wrong"), [(100, 3), (10, 2)])
def test_many_other_questions_are_refused(count: int, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"{wrong} of {count} .*; give the data that were asked about"):
        check(several(count, wrong))
