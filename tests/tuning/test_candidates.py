"""Candidates and what a search may combine."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.trial import FixedTrial

from vlmfix.methods.search_space import FirstOf
from vlmfix.tuning.candidates import Calibrated, Candidate, Space

RANKING = ((3, 1), (1, 5), (1, 4), (7, 3))


@pytest.fixture(scope="module")
def space(loaded: tuple[Any, Any]) -> Space:
    calibrated = Calibrated(rankings={"adhh": {"heads": RANKING}})
    return Space.on(*loaded, decodes=True, calibrated=calibrated, max_cost=6)


def test_a_ranking_is_a_dimension_and_begins_with_as_many_as_the_profile_lists(space: Space) -> None:
    assert space.ranges["adhh"]["heads"] == FirstOf(RANKING)
    assert space.defaults["adhh"]["heads"] == 2
    [alone] = [each for each in space.first_trials if each["attention"] == "adhh"]
    assert alone["adhh.heads"] == 2
    assert space.suggest(FixedTrial(alone)).parameters["adhh"]["heads"] == RANKING[:2]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_trial_takes_the_first_of_a_ranking(space: Space, count: int) -> None:
    [alone] = [each for each in space.first_trials if each["attention"] == "adhh"]
    candidate = space.suggest(FixedTrial(alone | {"adhh.heads": count}))
    assert candidate.parameters["adhh"]["heads"] == RANKING[:count]
    assert candidate.label == f"adhh(heads={count} of a list, threshold=0.4)"
    assert Candidate.of(candidate.parameters) == candidate


def test_what_costs_too_much_is_left_out(space: Space, loaded: tuple[Any, Any]) -> None:
    assert "vcd" in space.slots["logits"]
    cheap = Space.on(*loaded, decodes=True, calibrated=Calibrated(), max_cost=1)
    assert "vcd" not in cheap.slots["logits"]
    assert cheap.left_out["vcd"] == "it takes 2 forward passes a token, more than 1"
    assert "heads" not in cheap.ranges["adhh"]
