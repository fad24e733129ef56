"""HallusionBench: verdicts of a judge, and the table of errors of the specification."""

from __future__ import annotations

import pytest
from vlmfix.evals.hallusionbench.items import read_items
from vlmfix.evals.hallusionbench.judge import diagnoses, diagnosis, is_same, verdict_of

from tests.support.hallusionbench import vector
from vlmfix.evaluation.files.readers import Record

LH, VI, MIX = "language hallucination", "visual illusion", "mixed"


@pytest.mark.parametrize(
    ("category", "reference", "answer", "same", "edited", "expected"),
    [
        ("VD", "wrong", None, False, False, VI),
        ("VD", "unclear", None, False, False, VI),
        ("VD", "right", None, False, False, None),
        ("VD", "right", "wrong", True, True, MIX),
        ("VD", "right", "wrong", False, True, VI),
        ("VD", "right", "unclear", False, True, VI),
        ("VD", "wrong", "wrong", True, True, VI),
        ("VD", "unclear", "unclear", False, True, VI),
        ("VD", "wrong", "right", False, True, None),
        ("VS", "wrong", None, False, False, LH),
        ("VS", "unclear", None, False, False, None),
        ("VS", "wrong", "wrong", True, False, LH),
        ("VS", "wrong", "wrong", False, True, MIX),
        ("VS", "wrong", "unclear", False, True, MIX),
        ("VS", "unclear", "wrong", True, True, VI),
        ("VS", "unclear", "unclear", False, False, VI),
        ("VS", "right", "unclear", False, True, VI),
        ("VS", "right", "wrong", True, False, VI),
        ("VS", "right", "wrong", False, True, VI),
        ("VS", "right", "wrong", True, True, LH),
        ("VS", "right", "right", True, True, None),
    ],
)
def test_errors_by_kind(
    category: str, reference: str, answer: str | None, same: bool, edited: bool, expected: str | None
) -> None:
    found = diagnosis(category, reference, answer, same=same, is_edited=edited)  # type: ignore[arg-type]
    assert found == expected


def test_numbers_of_errors() -> None:
    items = {item.name: item for item in read_items(Record(row, "here") for row in vector())}
    said = ["right", "wrong", "wrong", "wrong", "wrong", "unclear"]
    verdicts = dict(zip(items, said, strict=True))
    found = diagnoses(items, verdicts, {"VD/chart/0/1/0": True})  # type: ignore[arg-type]
    assert found == {"VD": {LH: 0, VI: 2, MIX: 1}, "VS": {LH: 1, VI: 0, MIX: 1}}
    del verdicts["VS/chart/0/0/0"]  # without the reference nothing is known of the other
    assert diagnoses(items, verdicts, {})["VS"] == {LH: 0, VI: 0, MIX: 0}  # type: ignore[arg-type]


def test_verdicts_of_a_record() -> None:
    told = [verdict_of(Record({"gpt4v_output_gpt_check": value}, "")) for value in ("0", 1, " 2 ", None)]
    assert told == ["wrong", "right", "unclear", None]
    assert [is_same(Record(each, "")) for each in ({"same": "1"}, {"same": 2}, {})] == [True, False, None]
    with pytest.raises(ValueError, match=r'line 3: gpt4v_output_gpt_check is "fail"; it must be 0 \(wrong\)'):
        verdict_of(Record({"gpt4v_output_gpt_check": "fail"}, "line 3"))
