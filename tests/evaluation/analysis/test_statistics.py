"""Bootstrap and spread against worked vectors."""

import itertools

import numpy as np
import pytest

from vlmfix.evaluation.analysis import statistics
from vlmfix.evaluation.analysis.intervals import ratio_estimate
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import (
    draw_clusters,
    percentile_estimate,
    resampled_ratios,
    spread,
    weighted_ratios,
)

HALLUCINATED = np.array([[1, 0, 2, 0]], dtype=float)
MENTIONS = np.array([[4, 3, 5, 6]], dtype=float)


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


def test_bootstrap_of_a_mean_agrees_with_the_sandwich() -> None:
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(200), 6)
    values = (random.random(1200) < np.repeat(random.random(200), 6)).astype(float)
    metric = Metric("accuracy", values[None], np.ones((1, 1200)))
    error = ratio_estimate(metric, clusters).error
    assert resampled_ratios([metric], clusters).std() == pytest.approx(error, rel=0.05)


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


def test_resamples_that_agree_give_no_interval() -> None:
    estimate = percentile_estimate(0.5, np.full(100, 0.5), samples=3, clusters=3)
    assert (estimate.low, estimate.high, estimate.error) == (None, None, 0)


def test_nothing_to_resample() -> None:
    assert resampled_ratios([], np.arange(4), resamples=10).shape == (10, 0)
    empty = Metric("x", np.zeros((1, 0)), np.zeros((1, 0)))
    assert np.isnan(resampled_ratios([empty], np.arange(0), resamples=10)).all()


def test_spread_over_repeats() -> None:
    found = spread([0.7, 0.8, 0.9])
    assert found.values == (0.7, 0.8, 0.9)
    assert found.mean == pytest.approx(0.8)
    assert found.deviation == pytest.approx(0.1)


def test_names_of_images_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    wholes = generator.integers(1, 6, 90).astype(float)
    clusters, renamed = np.arange(90) // 3, generator.permutation(30)
    one, other = (
        Metric(name, generator.integers(0, 2, 90)[None].astype(float), wholes[None]) for name in ("a", "b")
    )
    drawn = resampled_ratios([one, other], clusters, resamples=50)
    assert (drawn == resampled_ratios([one, other], renamed[clusters], resamples=50)).all()
