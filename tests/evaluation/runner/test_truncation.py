"""Captions cut to the lengths of others."""

from __future__ import annotations

import random

import pytest

from vlmfix.evaluation.runner.truncation import limits, mean_limit
from vlmfix.evaluation.tasks.lengths import drop_incomplete


def test_image_by_image() -> None:
    assert limits([10, 4, 7], [6, 9, 7]) == [6, 4, 7]
    assert limits([6, 9, 7], [10, 4, 7]) == [6, 4, 7]  # the reverse
    assert limits([], []) == []


def test_one_limit_for_all() -> None:
    assert limits([10, 4, 7], [6, 6, 6], mode="mean") == [7, 4, 7]  # at 6 the mean is 16 / 3
    assert limits([10, 4, 7], [9, 9, 9], mode="mean") == [10, 4, 7]
    assert limits([10, 4, 7], [0, 0, 0], mode="mean") == [0, 0, 0]
    assert limits([], [], mode="mean") == []


def test_the_limit_is_the_smallest_that_does() -> None:
    dice = random.Random(0)
    for _ in range(50):
        lengths = [dice.randrange(40) for _ in range(8)]
        mean = dice.random() * sum(lengths) / 8
        limit = mean_limit(lengths, mean)
        assert sum(min(length, limit) for length in lengths) / 8 >= mean
        assert limit == 0 or sum(min(length, limit - 1) for length in lengths) / 8 < mean


def test_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="2 lengths and 1 targets"):
        limits([1, 2], [1])
    with pytest.raises(ValueError, match="mode is 'median'; it must be per_image or mean"):
        limits([1], [1], mode="median")


def test_a_cut_sentence_is_dropped() -> None:
    assert drop_incomplete("A dog sits. A cat sleeps on the") == "A dog sits."
    assert drop_incomplete("A dog and a cat") == "A dog and a cat"
