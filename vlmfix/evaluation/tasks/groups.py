"""Metrics of groups of samples: each group alone, and the unweighted mean over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric


def of_each_group(metric: Metric, groups: Sequence[str]) -> list[Metric]:
    """The metric of the samples of each group; none where there is only one group.

    Args:
        metric: of all samples.
        groups: that of each sample; "" belongs to none.
    """
    names = _names(groups)
    return [_of(metric, groups, [name], name) for name in names] if len(names) > 1 else []


def mean_of_groups(metric: Metric, groups: Sequence[str]) -> Metric:
    """The unweighted mean of the metrics of all groups.

    Args:
        metric: one ratio of sums over all samples.
        groups: that of each sample.
    """
    return _of(metric, groups, _names(groups), metric.group)


def _names(groups: Sequence[str]) -> list[str]:
    return sorted(set(groups) - {""})


def _of(metric: Metric, groups: Sequence[str], names: Sequence[str], group: str) -> Metric:
    members = np.array([[each == name for each in groups] for name in names], dtype=float)
    return dataclasses.replace(
        metric, parts=members * metric.parts, wholes=members * metric.wholes, group=group
    )
