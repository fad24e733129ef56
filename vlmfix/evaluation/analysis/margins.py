"""Figures of yes/no answers that no offset between yes and no changes, from margins at the first token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.ranks import MEASURES
from vlmfix.evaluation.analysis.results import AnyMetric, Calibration, Metric, RankMetric
from vlmfix.evaluation.analysis.statistics import totals

FITTED = "accuracy, fitted threshold"
BINS = 10

_MOST_THRESHOLDS = 512


def margin_metrics(
    margins: np.ndarray, is_yes: np.ndarray, clusters: Sequence[str], groups: Sequence[str]
) -> list[AnyMetric]:
    """Area under the ROC curve, average precision, and accuracy at a threshold fitted on other images: the
    mean over the groups, then each group.

    Args:
        margins: how far yes is above no at the first token of each answer, `(samples,)` float; NaN: the
            sample failed.
        is_yes: whether yes is right, `(samples,)` bool.
        clusters: the image of each sample.
        groups: the split of each sample.
    """
    answered = ~np.isnan(margins)
    right = np.zeros(len(margins))
    images = np.unique(clusters, return_inverse=True)[1]
    fits = len(np.unique(images[answered])) > 1
    right[answered] = fitted_right(margins[answered], is_yes[answered], images[answered])
    names = list(dict.fromkeys(groups))
    named = np.array(groups)
    found: list[AnyMetric] = []
    for group, of in {"": names, **({name: [name] for name in names} if len(names) > 1 else {})}.items():
        members = np.array([named == name for name in of]) & answered
        found += [RankMetric(name, margins, is_yes, members, group) for name in MEASURES]
        if fits:  # else there are no other images
            found.append(Metric(FITTED, members * right, members.astype(float), group, "higher"))
    return found


def fitted_right(margins: np.ndarray, is_yes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Which answers are right at the threshold that is best on all other images.

    Args:
        margins: `(samples,)`, finite.
        is_yes: `(samples,)` bool.
        images: number of the image of each sample, `(samples,)` int.

    Returns:
        `(samples,)` of zeros and ones; the middle one of several best thresholds counts. Without answers on
        other images, any threshold is as good.
    """
    numbers = np.unique(images, return_inverse=True)[1]
    if not len(margins):
        return np.zeros(0)
    levels = np.unique(margins)
    between = (levels[1:] + levels[:-1]) / 2
    if len(between) > _MOST_THRESHOLDS:
        between = np.quantile(margins, np.linspace(0, 1, _MOST_THRESHOLDS + 2)[1:-1])
    thresholds = np.concatenate([[levels[0] - 1], between, [levels[-1] + 1]])
    right = ((margins[:, None] > thresholds) == is_yes[:, None]).astype(float)
    own = totals(right.T, numbers).T  # (images, thresholds)
    others = own.sum(axis=0) - own
    best = others == others.max(axis=1, keepdims=True)
    middle = (np.cumsum(best, axis=1) > best.sum(axis=1, keepdims=True) // 2).argmax(axis=1)
    chosen: np.ndarray = right[np.arange(len(margins)), middle[numbers]]
    return chosen


def calibration(margins: np.ndarray, is_yes: np.ndarray) -> Calibration | None:
    """How far claimed probabilities of yes agree with what is right, in bins of equally many answers.

    Args:
        margins: `(samples,)`; NaN: the sample failed.
        is_yes: `(samples,)` bool.

    Returns:
        The bins in the order of the claims; None without answers.
    """
    answered = ~np.isnan(margins)
    if not answered.any():
        return None
    claimed = 1 / (1 + np.exp(-np.clip(margins[answered], -500, 500)))
    order = np.lexsort([is_yes[answered], claimed])
    bins = [each for each in np.array_split(order, BINS) if len(each)]
    means = [float(claimed[each].mean()) for each in bins]
    shares = [float(is_yes[answered][each].mean()) for each in bins]
    counts = [len(each) for each in bins]
    gaps = np.abs(np.subtract(means, shares))
    return Calibration(tuple(means), tuple(shares), tuple(counts), float(np.average(gaps, weights=counts)))
