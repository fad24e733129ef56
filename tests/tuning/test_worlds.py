"""Offsets between yes and no."""

import numpy as np
import pytest

from vlmfix.tuning.worlds import best_offset


@pytest.mark.parametrize(
    ("margins", "is_yes", "expected"),
    [
        ([-3.0, -1.0, 1.0, 3.0], [False, False, True, True], 0.0),  # half-way between -1 and 1
        ([1.0, 2.0, 3.0, 4.0], [False, False, True, True], -2.5),
        ([-4.0, -2.0, -1.0, 0.0], [False, True, True, True], 3.0),
        ([1.0, 1.0, 2.0], [True, False, False], 0.0),  # equal margins are never told apart: no wins by 2 to 1
        ([1.0, 2.0], [True, True], 0.0),
    ],
)
def test_the_best_offset_separates_as_many_as_can_be(
    margins: list[float], is_yes: list[bool], expected: float
) -> None:
    found = best_offset(np.array(margins), np.array(is_yes))
    right = ((np.array(margins) + found > 0) == np.array(is_yes)).sum()
    every = np.r_[min(margins) - 1, np.array(margins) + 1e-6]
    best = max(((np.array(margins) > threshold) == np.array(is_yes)).sum() for threshold in every)
    assert right == best
    if expected:
        assert found == pytest.approx(expected)
