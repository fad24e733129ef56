"""Which trials come into the choice."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("optuna")

from vlmfix.tuning.candidates import Candidate
from vlmfix.tuning.choice import finalists
from vlmfix.tuning.search import Measured, Trial


def trial(number: int, value: float, *, is_complete: bool = True, **parts: dict[str, Any]) -> Trial:
    measured = Measured(value, (value,), (value,), {}, ())
    return Trial(number, Candidate.of(parts), 72, measured, is_complete, 1.0)


def test_the_best_complete_trials_with_three_of_the_same_methods_at_most() -> None:
    strengths = [trial(number, 0.1 - number / 1000, pai={"alpha": number / 10}) for number in range(1, 6)]
    others = [trial(number, 0.01, vaf={"enhance": 1 + number / 100}) for number in range(10, 20)]
    found = finalists(
        [*reversed(strengths), trial(0, 0.0), trial(8, 0.2, is_complete=False, var={}), *others]
    )
    assert [each.label for each in found[:3]] == ["pai(alpha=0.1)", "pai(alpha=0.2)", "pai(alpha=0.3)"]
    assert [[name for name, _ in each.parts] for each in found] == [["pai"]] * 3 + [["vaf"]] * 3


def test_a_candidate_that_was_tried_twice_comes_once() -> None:
    found = finalists([trial(1, 0.1, pai={"alpha": 0.2}), trial(2, 0.1, pai={"alpha": 0.2})])
    assert len(found) == 1


def test_what_is_no_better_than_greedy_decoding_is_left_out() -> None:
    assert finalists([trial(0, 0.0), trial(1, -0.1, pai={})]) == []
