"""Tests of differences and their correction against worked vectors."""

import numpy as np
import pytest
from scipy.stats import binom

from vlmfix.evaluation.analysis import significance
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.significance import SwapTest, holm, mcnemar, swap_test


def means(values: object, wholes: object = None) -> Metric:
    parts = np.atleast_2d(np.asarray(values, dtype=float))
    return Metric("m", parts, np.ones(parts.shape) if wholes is None else np.atleast_2d(wholes).astype(float))


def test_all_patterns_of_few_images() -> None:
    differences = np.array([2, 1, 0, 1, -1, 3, 1, 1])
    test = swap_test(means(differences), means(np.zeros(8)), np.arange(8))
    assert test == SwapTest(p=0.09375, images=8, differing=7)


def test_one_sample_an_image_is_mcnemar() -> None:
    better, worse = np.arange(60) < 9, (np.arange(60) >= 9) & (np.arange(60) < 12)
    assert swap_test(means(better), means(worse), np.arange(60)).p == pytest.approx(mcnemar(9, 3), abs=1e-12)
    better, worse = np.arange(200) < 40, (np.arange(200) >= 40) & (np.arange(200) < 62)
    test = swap_test(means(better), means(worse), np.arange(200))
    assert (test.images, test.differing) == (200, 62)
    p = 2 * binom.cdf(22, 62, 0.5)
    assert test.p == pytest.approx(p, abs=4 * np.sqrt(p / significance.SWAPS))
    assert test == swap_test(means(worse), means(better), np.arange(200))


def test_ratio_by_hand() -> None:
    # 3/6 - 1/8; 1/8 - 3/6; with the first image exchanged 2/7 - 2/7; with the second one 2/7 - 2/7
    own, other = means([2, 1], [3, 3]), means([1, 0], [4, 4])
    assert swap_test(own, other, np.arange(2)).p == 0.5


def test_mean_of_ratios_by_hand() -> None:
    # Exchanged alone, the first image leaves 1/2 - 1/2, the second one -1/2 - 1/2 (of 0/1 and 1/1).
    own = means([[1, 0], [0, 1]], [[1, 0], [0, 1]])
    other = means(np.zeros((2, 2)), [[1, 0], [0, 1]])
    assert swap_test(own, other, np.arange(2)) == SwapTest(0.5, 2, 2)


def test_samples_of_an_image_are_exchanged_together() -> None:
    own, other = means(np.ones(12)), means(np.zeros(12))
    assert swap_test(own, other, np.arange(12) // 6).p == 0.5
    assert swap_test(own, other, np.arange(12)).p == 2 / 2**12


def test_equal_methods_and_undefined_ratios() -> None:
    same = means([1, 0, 1])
    assert swap_test(same, same, np.arange(3)) == SwapTest(1, 3, 0)
    nothing = means(np.zeros(3), np.zeros(3))
    assert swap_test(same, nothing, np.arange(3)).p == 1
    # Exchanging one of the images leaves a method without a denominator: counted as large.
    assert swap_test(means([1, 0], [1, 0]), means([0, 0], [0, 1]), np.arange(2)).p == 1
    with pytest.raises(ValueError, match=r"shapes \(1, 3\) and \(1, 2\) at 3 labels"):
        swap_test(same, means([1, 0]), np.arange(3))


def test_patterns_are_the_same_whatever_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = np.random.default_rng(0).integers(3, size=(2, 30))
    whole = swap_test(means(own), means(other), np.arange(30))
    monkeypatch.setattr(significance, "_SWAPS_AT_ONCE", 3000)
    assert swap_test(means(own), means(other), np.arange(30)) == whole


def test_p_is_uniform_without_an_effect() -> None:
    random = np.random.default_rng(1)
    ps = [
        swap_test(means(own), means(other), np.arange(48) // 4).p
        for own, other in random.integers(2, size=(300, 2, 48))
    ]
    assert 0.02 < np.mean(np.array(ps) <= 0.05) < 0.08


def test_holm() -> None:
    p_values = [0.001, 0.009, 0.012, 0.02, 0.04, 0.30]
    expected = [0.006, 0.045, 0.048, 0.060, 0.080, 0.300]
    assert holm(p_values) == pytest.approx(expected)
    assert holm(p_values[::-1]) == pytest.approx(expected[::-1])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(9, 3, 0.145996), (3, 9, 0.145996), (0, 0, 1), (5, 5, 1), (0, 6, 0.03125)]
)
def test_mcnemar(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-6)


def test_names_of_images_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    wholes = generator.integers(1, 6, 80)
    own, other = means(generator.integers(0, 2, 80), wholes), means(generator.integers(0, 2, 80), wholes)
    renamed = generator.permutation(80)
    assert swap_test(own, other, np.arange(80)) == swap_test(own, other, renamed)
