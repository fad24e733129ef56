"""Standard errors, bootstrap and McNemar's test against worked vectors."""

import itertools

import numpy as np
import pytest

from vlmfix.evaluation.analysis import statistics
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import (
    clustered_error,
    draw_clusters,
    mcnemar,
    mean_estimate,
    naive_error,
    percentile_estimate,
    resampled_ratios,
    robust_error,
    spread,
    weighted_ratios,
)

VALUES = np.array([1, 1, 1, 0, 0, 1, 0, 1, 1, 1], dtype=float)
BASELINE = np.array([1, 0, 1, 0, 0, 1, 0, 0, 1, 1], dtype=float)
CLUSTERS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
HALLUCINATED = np.array([[1, 0, 2, 0]], dtype=float)
MENTIONS = np.array([[4, 3, 5, 6]], dtype=float)


def test_standard_errors_of_a_mean() -> None:
    assert naive_error(VALUES) == pytest.approx(0.152753, abs=1e-6)
    assert clustered_error(VALUES, CLUSTERS) == pytest.approx(0.166533, abs=1e-6)
    assert robust_error(VALUES, CLUSTERS) == pytest.approx(0.184029, abs=1e-6)


def test_paired_difference() -> None:
    estimate = mean_estimate(VALUES - BASELINE, CLUSTERS)
    assert estimate.value == 0.2
    assert estimate.error == pytest.approx(0.117757, abs=1e-6)
    half = 3.182446 * 0.117757  # Student's t with three degrees of freedom
    assert (estimate.low, estimate.high) == (
        pytest.approx(0.2 - half, abs=1e-5),
        pytest.approx(0.2 + half, abs=1e-5),
    )
    assert not estimate.excludes_zero
    assert (estimate.samples, estimate.clusters, estimate.source) == (10, 4, "sandwich")


def test_labels_of_clusters_do_not_matter() -> None:
    names = np.array(["d", "d", "d", "a", "a", "a", "c", "c", "b", "b"])
    order = np.random.default_rng(0).permutation(10)
    assert robust_error(VALUES[order], names[order]) == pytest.approx(robust_error(VALUES, CLUSTERS))
    assert clustered_error(VALUES[order], names[order]) == pytest.approx(clustered_error(VALUES, CLUSTERS))


def test_each_sample_its_own_cluster_gives_the_naive_error() -> None:
    own = np.arange(10)
    assert robust_error(VALUES, own) == pytest.approx(naive_error(VALUES))
    assert clustered_error(VALUES, own) == pytest.approx(naive_error(VALUES))


def test_opposite_answers_about_each_image_leave_no_error() -> None:
    values, clusters = np.array([0.0, 1, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    assert clustered_error(values, clusters) == pytest.approx(np.sqrt(0.05 - 1.5 / 36))
    assert robust_error(values, clusters) == 0


@pytest.mark.parametrize("count", [1, 5])
def test_one_cluster_has_no_interval(count: int) -> None:
    values, clusters = np.arange(count, dtype=float), np.zeros(count, dtype=int)
    assert robust_error(values, clusters) is None
    assert clustered_error(values, clusters) is None
    estimate = mean_estimate(values, clusters)
    assert estimate.value == values.mean()
    assert estimate.low is estimate.high is estimate.error is None
    assert not estimate.excludes_zero


def test_all_resamples_of_a_ratio() -> None:
    weights = np.array([np.bincount(drawn, minlength=4) for drawn in itertools.product(range(4), repeat=4)])
    ratios = weighted_ratios(weights.astype(float), HALLUCINATED, MENTIONS)
    assert len(ratios) == 256
    assert ratios.mean() == pytest.approx(0.167192, abs=1e-6)
    assert ratios.std() == pytest.approx(0.090342, abs=1e-6)


def test_bootstrap_approaches_all_resamples() -> None:
    metric = Metric("CHAIRi", HALLUCINATED, MENTIONS)
    assert metric.value == pytest.approx(0.166667, abs=1e-6)
    draws = resampled_ratios([metric], np.arange(4))
    assert draws.shape == (statistics.RESAMPLES, 1)
    assert draws.mean() == pytest.approx(0.167192, abs=0.003)
    assert draws.std() == pytest.approx(0.090342, abs=0.003)


def test_bootstrap_of_a_mean_agrees_with_the_robust_error() -> None:
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(200), 6)
    values = (random.random(1200) < np.repeat(random.random(200), 6)).astype(float)
    metric = Metric("accuracy", values[None], np.ones((1, 1200)))
    assert resampled_ratios([metric], clusters).std() == pytest.approx(
        robust_error(values, clusters), rel=0.05
    )


def test_draws_are_whole_resamples_whatever_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_clusters(7, resamples=50)))
    assert whole.shape == (50, 7)
    assert (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr(statistics, "_WEIGHTS_AT_ONCE", 20)
    blocks = list(draw_clusters(7, resamples=50))
    assert len(blocks) == 25
    assert (np.concatenate(blocks) == whole).all()


def test_resamples_are_the_same_for_all_metrics_and_methods() -> None:
    one = Metric("x", HALLUCINATED, MENTIONS)
    double = Metric("y", 2 * HALLUCINATED, MENTIONS)
    together = resampled_ratios([one, double], np.arange(4))
    alone = resampled_ratios([double], np.arange(4))
    assert (together[:, 1] == 2 * together[:, 0]).all()
    assert (together[:, 1] == alone[:, 0]).all()


def test_mean_of_ratios_is_unweighted() -> None:
    parts, wholes = np.array([[1.0, 0, 0, 0], [0, 0, 3, 3]]), np.array([[1.0, 1, 0, 0], [0, 0, 4, 4]])
    metric = Metric("accuracy", parts, wholes)
    draws = resampled_ratios([metric], np.zeros(4, dtype=int))
    assert metric.value == 0.625
    assert (draws == 0.625).all()


def test_resamples_without_a_denominator_are_left_out() -> None:
    metric = Metric("precision", np.array([[1.0, 0, 0]]), np.array([[1.0, 1, 0]]))
    draws = resampled_ratios([metric], np.arange(3))[:, 0]
    assert np.isnan(draws).mean() == pytest.approx(1 / 27, abs=0.01)
    estimate = percentile_estimate(0.5, draws, samples=2, clusters=2)
    assert (estimate.low, estimate.high, estimate.source) == (0, 1, "bootstrap")


def test_ratio_of_one_image_has_no_interval() -> None:
    estimate = percentile_estimate(0.5, np.full(100, 0.5), samples=3, clusters=1)
    assert estimate.low is estimate.high is estimate.error is None


def test_nothing_to_resample() -> None:
    assert resampled_ratios([], np.arange(4), resamples=10).shape == (10, 0)
    empty = Metric("x", np.zeros((1, 0)), np.zeros((1, 0)))
    assert np.isnan(resampled_ratios([empty], np.arange(0), resamples=10)).all()


def test_negative_zero_is_zero() -> None:
    estimate = mean_estimate(np.array([-1e-17, 0.0]), np.arange(2))
    assert str(estimate.value) == str(estimate.low) == "0.0"


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(9, 3, 0.145996), (3, 9, 0.145996), (0, 0, 1), (5, 5, 1), (0, 6, 0.03125)]
)
def test_mcnemar(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-6)


def test_spread_over_repeats() -> None:
    found = spread([0.7, 0.8, 0.9])
    assert found.values == (0.7, 0.8, 0.9)
    assert found.mean == pytest.approx(0.8)
    assert found.deviation == pytest.approx(0.1)
