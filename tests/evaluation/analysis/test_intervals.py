"""Intervals of shares, ratios and paired differences against the worked vectors."""

import numpy as np
import pytest

from vlmfix.evaluation.analysis.intervals import is_by_sample, paired_estimate, ratio_estimate
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import Estimate

CLUSTERS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
RIGHT = np.array([1, 1, 1, 0, 0, 1, 0, 1, 1, 1])
BASELINE = np.array([1, 0, 1, 0, 0, 1, 0, 0, 1, 1])


def share(values: object, *, percent: bool = True) -> Metric:
    parts = np.atleast_2d(np.asarray(values, dtype=float))
    return Metric("accuracy", parts, np.ones(parts.shape), percent=percent)


def counts(right: int, images: int) -> np.ndarray:
    return np.arange(images) < right


def expect(found: Estimate, *figures: float) -> None:
    assert [found.value, found.error, found.low, found.high] == pytest.approx(figures, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "clusters", "figures"),
    [
        (share(RIGHT), CLUSTERS, (0.7, 0.184029, 0.207947, 0.953997)),
        (share(counts(12, 12)), np.arange(12), (1, 0, 0.757506, 1)),
        (share(counts(0, 12)), np.arange(12), (0, 0, 0, 1 - 0.757506)),
        (share(counts(11, 12)), np.arange(12), (0.916667, 0.083333, 0.646120, 0.995726)),
        (share(counts(12, 12)), np.arange(12) // 3, (1, 0, 0.283126, 1)),
        (share(counts(3000, 3000)), np.arange(3000) // 6, (1, 0, 0.992339, 1)),
        (share([1, 0] * 4), np.arange(8) // 2, (0.5, 0, 0.126271, 0.873729)),
        (share(counts(59, 60)), np.arange(60), (0.983333, 0.016667, 0.911449, 0.999145)),
        (
            Metric("CHAIRi", np.array([[1.0, 0, 2, 0]]), np.array([[4.0, 3, 5, 6]])),
            np.arange(4),
            (0.166667, 0.105842, 0.026246, 0.597430),
        ),
        (
            Metric("CHAIRi", np.zeros((1, 4)), np.array([[4.0, 3, 5, 6]])),
            np.arange(4),
            (0, 0, 0, 0.716874),
        ),
    ],
)
def test_shares(metric: Metric, clusters: np.ndarray, figures: tuple[float, ...]) -> None:
    found = ratio_estimate(metric, clusters)
    expect(found, *figures)
    assert found.source == "Wilson"


@pytest.mark.parametrize(
    ("better", "worse", "figures"),
    [
        (0, 0, (0, 0, -0.197986, 0.197986)),
        (6, 0, (0.1, 0.039057, 0.010667, 0.182881)),
        (9, 3, (0.1, 0.056748, -0.019029, 0.212578)),
    ],
)
def test_paired_shares(better: int, worse: int, figures: tuple[float, ...]) -> None:
    images = 60 if better else 12
    after, before = counts(better, images), counts(better + worse, images) & ~counts(better, images)
    expect(paired_estimate(share(after), share(before), np.arange(images)), *figures)


def test_paired_shares_with_several_samples_an_image() -> None:
    found = paired_estimate(share(RIGHT), share(BASELINE), CLUSTERS)
    expect(found, 0.2, 0.117757, -0.341160, 0.674493)
    assert (found.samples, found.clusters, found.source) == (10, 4, "adjusted")
    names = np.array(["d", "d", "d", "a", "a", "a", "c", "c", "b", "b"])
    order = np.random.default_rng(0).permutation(10)
    assert paired_estimate(share(RIGHT[order]), share(BASELINE[order]), names[order]) == found


def test_splits_with_the_same_answers_are_worth_one() -> None:
    one, three = share(RIGHT), share([RIGHT] * 3)
    wide = Metric("accuracy", np.tile(one.parts, 3), np.tile(one.wholes, 3))
    assert ratio_estimate(three, CLUSTERS).error == ratio_estimate(one, CLUSTERS).error
    assert ratio_estimate(three, CLUSTERS).low == pytest.approx(
        ratio_estimate(wide, np.tile(CLUSTERS, 3)).low, abs=1e-9
    )


def test_scores_that_are_no_counts_keep_the_t_interval() -> None:
    values = np.array([0.3, 1, 1, 0.6, 1, 0.9, 1, 1])
    found = ratio_estimate(share(values), np.arange(8))
    half = 2.364624 * values.std(ddof=1) / np.sqrt(8)  # Student's t with seven degrees of freedom
    expect(found, 0.85, values.std(ddof=1) / np.sqrt(8), 0.85 - half, 1)
    assert found.source == "sandwich"
    words = share(10 * values, percent=False)
    assert ratio_estimate(words, np.arange(8)).high == pytest.approx(8.5 + 10 * half, abs=1e-5)
    assert paired_estimate(words, share(9 * values, percent=False), np.arange(8)).low == pytest.approx(
        0.85 - half, abs=1e-5
    )
    double = Metric("no share", np.full((1, 8), 2.0) - (np.arange(8) < 3), np.ones((1, 8)))
    assert ratio_estimate(double, np.arange(8)).source == "sandwich"
    same = paired_estimate(words, words, np.arange(8))
    assert (same.value, same.low, same.high, same.source) == (0, None, None, "sandwich")


def test_one_image_has_no_interval() -> None:
    for found in (
        ratio_estimate(share([1, 0]), np.zeros(2)),
        paired_estimate(share([1, 0]), share([0, 0]), np.zeros(2)),
        ratio_estimate(share([0.5, 0]), np.zeros(2)),
    ):
        assert found.value != 0
        assert found.low is found.high is found.error is None
        assert not found.excludes_zero


def test_what_is_paired_by_sample() -> None:
    precision = Metric("precision", np.array([[1.0, 0]]), np.array([[1.0, 0]]))
    mentions = Metric("CHAIRi", np.array([[1.0, 0]]), np.array([[2.0, 3]]))
    assert is_by_sample(share([1, 0]), share([0, 0]))
    assert is_by_sample(precision, precision)
    assert not is_by_sample(precision, share([1, 0]))
    assert not is_by_sample(mentions, mentions)


@pytest.mark.parametrize(("images", "share_right"), [(12, 0.97), (60, 0.5), (60, 0.99)])
def test_coverage(images: int, share_right: float) -> None:
    random = np.random.default_rng(20251128)
    covered = []
    for _ in range(400):
        found = ratio_estimate(share(random.random(images) < share_right), np.arange(images))
        assert found.low is not None
        assert found.high is not None
        covered.append(found.low <= share_right <= found.high)
    assert np.mean(covered) > 0.93
