"""Metrics of groups of samples."""

from __future__ import annotations

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.tasks.groups import mean_of_groups, of_each_group

METRIC = Metric("accuracy", np.array([[1, 0, 1, 1]]), np.ones((1, 4)), better="higher")


def test_each_group_and_their_mean() -> None:
    groups = ["b", "b", "a", "b"]
    found = of_each_group(METRIC, groups)
    assert [(each.group, each.name, each.better, each.value) for each in found] == [
        ("a", "accuracy", "higher", 1),
        ("b", "accuracy", "higher", 2 / 3),
    ]
    mean = mean_of_groups(METRIC, groups)
    assert (mean.group, round(mean.value, 6), mean.parts.shape) == ("", 0.833333, (2, 4))


def test_one_group_is_the_whole() -> None:
    assert of_each_group(METRIC, ["a"] * 4) == []
    assert of_each_group(METRIC, [""] * 4) == []
    assert mean_of_groups(METRIC, ["a"] * 4).value == METRIC.value


def test_samples_of_no_group() -> None:
    found = of_each_group(METRIC, ["", "b", "a", "b"])
    assert [(each.group, each.value, each.wholes.sum()) for each in found] == [("a", 1, 1), ("b", 0.5, 2)]
