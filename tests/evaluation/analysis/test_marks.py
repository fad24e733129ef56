"""The rule for marks, and the marks of a table."""

import dataclasses

import numpy as np
import pytest

from tests.support import outcomes
from vlmfix.evaluation.analysis.comparison import compare
from vlmfix.evaluation.analysis.marks import Mark, mark
from vlmfix.evaluation.analysis.significance import SwapTest, holm, swap_test
from vlmfix.evaluation.analysis.statistics import Estimate

CLEAR, UNCLEAR = (Estimate(0.1, low, 0.2, 0.05, 60, 60, "adjusted") for low in (0.01, -0.01))


@pytest.mark.parametrize(
    ("difference", "images", "differing", "p", "marked", "reason"),
    [
        (CLEAR, 60, 6, 0.031, True, "the interval excludes 0 and the corrected p is 0.031"),
        (CLEAR, 60, 12, 0.05, False, "the interval excludes 0 but the corrected p is 0.05"),
        (UNCLEAR, 60, 12, 0.04, False, "the interval includes 0 but the corrected p is 0.04"),
        (UNCLEAR, 60, 12, 0.4, False, "the interval includes 0 and the corrected p is 0.4"),
        (CLEAR, 9, 9, 0.004, False, "only 9 images; a mark needs 10"),
        (CLEAR, 60, 5, 0.04, False, "they differ on 5 images; a mark needs 6"),
    ],
)
def test_rule(difference: Estimate, images: int, differing: int, p: float, marked: bool, reason: str) -> None:
    assert mark(difference, SwapTest(0.01, images, differing), p) == Mark(
        marked, reason, p, " but " in reason
    )


def test_marks_of_a_table_are_corrected_together() -> None:
    several = [
        outcomes.captions(images=60),
        outcomes.captions("careful", care=0.9, images=60),
        outcomes.captions("same", images=60),
        outcomes.captions("fewer", images=40),
        dataclasses.replace(outcomes.captions("bare", images=60), metrics=[]),
    ]
    [comparison] = compare(several)
    found = comparison.marks("CHAIRi")
    assert list(found) == ["careful", "same", "fewer", "bare"]
    assert found["careful"].marked
    assert found["same"].reason == "they differ on 0 images; a mark needs 6"
    assert found["fewer"] == Mark(False, "only one of the two has 20 of the samples", None)
    assert found["bare"] == Mark(False, "CHAIRi is undefined for one of the two", None)
    first, careful = (row.figure("CHAIRi").metric for row in comparison.rows[:2])  # type: ignore[union-attr]
    test = swap_test(careful, first, np.array(comparison.rows[0].outcome.clusters))
    assert found["careful"].p == holm([test.p, 1.0])[0]


def test_samples_without_an_answer_leave_no_mark() -> None:
    [comparison] = compare([outcomes.yes_no(), outcomes.yes_no("var", yes_bias=0.9, failed=(0, 5))])
    found = comparison.marks("accuracy")["var"]
    assert found == Mark(False, "var has 2 samples without an answer", None)


def test_table_of_one() -> None:
    [comparison] = compare([outcomes.yes_no()])
    assert comparison.marks("accuracy") == {}
