"""Figures of rankings, and what each question moves them by."""

from __future__ import annotations

import numpy as np
import pytest

from vlmfix.evaluation.analysis.ranks import MEASURES, area, average_precision


def by_hand(margins: np.ndarray, is_yes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Both figures of weighted questions, pair by pair and question by question."""
    yes, no = np.flatnonzero(is_yes), np.flatnonzero(~is_yes)
    above = sum(
        weights[i]
        * weights[j]
        * (1.0 if margins[i] > margins[j] else 0.5 if margins[i] == margins[j] else 0.0)
        for i in yes
        for j in no
    )
    precisions = [
        weights[i] * (weights * is_yes)[margins >= margins[i]].sum() / weights[margins >= margins[i]].sum()
        for i in yes
    ]
    return float(above / (weights[yes].sum() * weights[no].sum())), float(
        sum(precisions) / weights[yes].sum()
    )


@pytest.fixture(params=[0, 1, 2])
def questions(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(request.param)
    is_yes = np.arange(40) % 3 == 0
    return np.round(generator.normal(size=40) + is_yes, 1), is_yes  # with ties


def test_small_rankings() -> None:
    is_yes = np.array([True, False, True, False])
    for measure in (area, average_precision):
        assert measure(np.array([4.0, 1.0, 3.0, 2.0]), is_yes)[0] == 1
    assert area(np.array([1.0, 2.0, 3.0, 4.0]), is_yes)[0] == 0.25
    assert average_precision(np.array([1.0, 2.0, 3.0, 4.0]), is_yes)[0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    for measure in (area, average_precision):
        assert measure(np.zeros(4), is_yes)[0] == 0.5


def test_pair_by_pair(questions: tuple[np.ndarray, np.ndarray]) -> None:
    found = [measure(*questions)[0] for measure in MEASURES.values()]
    assert found == pytest.approx(by_hand(*questions, np.ones(40)))


def test_shares_are_the_derivative_by_weights(questions: tuple[np.ndarray, np.ndarray]) -> None:
    step = 1e-6
    for place, measure in enumerate(MEASURES.values()):
        shares = measure(*questions)[1]
        assert shares.sum() == pytest.approx(0, abs=1e-12)
        for index in range(40):
            weights = np.ones(40)
            weights[index] += step
            moved = (by_hand(*questions, weights)[place] - by_hand(*questions, np.ones(40))[place]) / step
            assert shares[index] == pytest.approx(moved, abs=1e-4)


@pytest.mark.parametrize("measure", MEASURES.values())
def test_offsets_and_scales_change_nothing(measure: object, questions: tuple[np.ndarray, np.ndarray]) -> None:
    margins, is_yes = questions
    assert callable(measure)
    for other in (margins + 7, 3 * margins, np.exp(margins)):
        value, shares = measure(other, is_yes)
        assert value == measure(margins, is_yes)[0]
        assert shares == pytest.approx(measure(margins, is_yes)[1])
