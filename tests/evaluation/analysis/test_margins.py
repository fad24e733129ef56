"""Figures that no offset between yes and no changes."""

from __future__ import annotations

import numpy as np
import pytest

from vlmfix.evaluation.analysis.estimates import Estimates, Key
from vlmfix.evaluation.analysis.intervals import rank_difference, rank_estimate
from vlmfix.evaluation.analysis.margins import FITTED, calibration, fitted_right, margin_metrics
from vlmfix.evaluation.analysis.results import Metric, Outcome, RankMetric, SampleResult
from vlmfix.evaluation.analysis.roc import auc, auc_difference


def questions(images: int, seed: int = 0, effect: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins, right answers and images of six questions each, which have something in common."""
    generator = np.random.default_rng(seed)
    is_yes = np.arange(6 * images) % 2 == 0
    common = np.repeat(generator.normal(size=images), 6)
    return common + generator.normal(size=6 * images) + effect * is_yes, is_yes, np.arange(6 * images) // 6


def outcome(margins: np.ndarray, is_yes: np.ndarray, images: np.ndarray, method: str = "m") -> Outcome:
    samples = [
        SampleResult(str(index), str(image), None, "?", "", "", "", 1.0) for index, image in enumerate(images)
    ]
    groups = ["a" if index % 3 else "b" for index in range(len(images))]
    metrics = margin_metrics(margins, is_yes, [str(image) for image in images], groups)
    return Outcome(
        task="pope",
        protocol="p",
        method=method,
        parameters={},
        samples=samples,
        repeats=np.zeros(len(samples), dtype=int),
        metrics=metrics,
    )


def test_one_set_is_the_area_of_the_whole() -> None:
    (one, is_yes, images), other = questions(40), questions(40, seed=9)[0]
    members = np.ones((1, 240), dtype=bool)
    metrics = [RankMetric("AUC", each, is_yes, members) for each in (one, other)]
    assert metrics[0].value == auc(one, is_yes)
    found, known = rank_difference(*metrics, images), auc_difference(one, other, is_yes, images)
    assert (found.value, found.low, found.high) == pytest.approx((known.value, known.low, known.high))
    assert (found.samples, found.clusters) == (240, 40)


@pytest.mark.parametrize("name", ["AUC", "average precision"])
def test_intervals_hold_the_figure_of_many_images(name: str) -> None:
    margins, is_yes, _ = questions(4000, seed=1)
    truth = RankMetric(name, margins, is_yes, np.ones((1, len(margins)), dtype=bool)).value
    inside = 0
    for seed in range(200):
        own, answers, images = questions(60, seed=100 + seed)
        found = rank_estimate(RankMetric(name, own, answers, np.ones((1, 360), dtype=bool)), images)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert 0.9 <= inside / 200 <= 0.99


def test_the_mean_over_splits_and_each_split() -> None:
    margins, is_yes, images = questions(30)
    metrics = {(each.name, each.group): each for each in outcome(margins, is_yes, images).metrics}
    assert set(metrics) == {
        (name, group) for name in ("AUC", "average precision", FITTED) for group in ("", "a", "b")
    }
    for name in ("AUC", "average precision", FITTED):
        assert metrics[name, ""].value == pytest.approx(
            (metrics[name, "a"].value + metrics[name, "b"].value) / 2
        )


def test_an_offset_changes_none_of_them() -> None:
    margins, is_yes, images = questions(30)
    one, other = outcome(margins, is_yes, images), outcome(margins + 40, is_yes, images, "shifted")
    whole = [Estimates(each, np.ones(180, dtype=bool)) for each in (one, other)]
    for key in whole[0].metrics:
        assert whole[0].estimate(key) == whole[1].estimate(key)
        difference = whole[1].difference(key, whole[0])
        assert difference is not None
        assert difference.value == 0
    assert Key("", "", "AUC") in whole[0].metrics


def test_failed_samples_add_nothing() -> None:
    margins, is_yes, images = questions(20)
    lost = margins.copy()
    lost[::7] = np.nan
    metrics = {(each.name, each.group): each for each in outcome(lost, is_yes, images).metrics}
    kept = ~np.isnan(lost)
    half = np.array([index % 3 == 0 for index in range(120)])
    assert metrics["AUC", "b"].value == auc(margins[kept & half], is_yes[kept & half])
    fitted = metrics[FITTED, "b"]
    assert isinstance(fitted, Metric)
    assert fitted.wholes.sum() == (kept & half).sum()


def test_a_set_with_one_answer_is_undefined() -> None:
    metric = RankMetric("AUC", np.arange(4.0), np.ones(4, dtype=bool), np.ones((1, 4), dtype=bool))
    assert not metric.is_defined
    assert metric.value == 0


def test_the_threshold_is_of_other_images() -> None:
    margins = np.array([5.0, 3.0, 5.5, 2.5, 1.0, 0.0])
    is_yes = np.array([True, False, True, False, True, False])
    images = np.array([0, 0, 1, 1, 2, 2])
    # Without the last image, everything between 3 and 5 is best: its own yes of 1 falls below.
    assert fitted_right(margins, is_yes, images).tolist() == [1, 1, 1, 1, 0, 1]


def test_the_threshold_step_by_step() -> None:
    margins, is_yes, images = questions(12, seed=4)
    found = fitted_right(margins, is_yes, images)
    levels = np.sort(margins)
    thresholds = [levels[0] - 1, *((levels[1:] + levels[:-1]) / 2), levels[-1] + 1]
    for image in range(12):
        others = images != image
        hits = [int(((margins > each) == is_yes)[others].sum()) for each in thresholds]
        best = [each for each, count in zip(thresholds, hits, strict=True) if count == max(hits)]
        middle = best[len(best) // 2]
        own = images == image
        assert found[own].tolist() == ((margins > middle) == is_yes)[own].astype(float).tolist()


def test_many_margins_take_few_thresholds() -> None:
    margins, is_yes, images = questions(300, seed=2, effect=3.0)
    assert fitted_right(margins, is_yes, images).mean() > 0.8


def test_calibration_by_hand() -> None:
    margins = np.array([0.0] * 10 + [np.log(9)] * 10 + [np.nan])
    is_yes = np.array([True] * 5 + [False] * 5 + [True] * 8 + [False] * 2 + [True])
    found = calibration(margins, is_yes)
    assert found is not None
    assert sum(found.counts) == 20
    assert found.claimed[0] == pytest.approx(0.5)
    assert found.claimed[-1] == pytest.approx(0.9)
    assert np.average(found.right, weights=found.counts) == pytest.approx(13 / 20)
    assert calibration(np.array([np.nan]), np.array([True])) is None


def test_one_image_fits_no_threshold() -> None:
    margins, is_yes, _ = questions(1)
    metrics = outcome(margins, is_yes, np.zeros(6, dtype=int)).metrics
    assert {each.name for each in metrics} == {"AUC", "average precision"}
