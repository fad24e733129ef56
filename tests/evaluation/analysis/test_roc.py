"""Area under the ROC curve: by counting pairs, its interval and its test."""

import itertools

import numpy as np
import pytest

from vlmfix.evaluation.analysis.roc import auc, auc_difference, auc_swap_test

RANDOM = np.random.default_rng(3)


def by_pairs(margins: np.ndarray, is_yes: np.ndarray) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a in margins[is_yes] for b in margins[~is_yes]]))


def questions(images: int, noise: float, seed: int) -> tuple[np.ndarray, ...]:
    """Margins of two methods on four questions about each image, equally good at equal noise."""
    random = np.random.default_rng(seed)
    is_yes = np.tile([True, False, True, False], images)
    clusters = np.repeat(np.arange(images), 4)
    shared = is_yes + random.normal(size=images)[clusters] + random.normal(size=4 * images)
    one, other = shared + np.array([[1.0], [noise]]) * random.normal(size=(2, 4 * images))
    return one, 5 * other - 3, is_yes, clusters


def test_area() -> None:
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert auc(np.zeros(5), np.arange(5) < 2) == 0.5
    margins, is_yes = RANDOM.integers(5, size=40).astype(float), RANDOM.random(40) < 0.4
    assert auc(margins, is_yes) == pytest.approx(by_pairs(margins, is_yes))
    assert auc(np.exp(margins), is_yes) == auc(margins, is_yes)


def test_interval_by_hand() -> None:
    # The right yes lies above both noes for the first method, above one of them for the second. Placements
    # of the questions differ by 1/2, 0 (yes) and 1/2, 0 (no); shares by (1/4 - 1/4) / 2 and so on.
    margins, others = np.array([3.0, 4, 2, 1]), np.array([1.5, 4, 2, 1])
    is_yes = np.array([True, True, False, False])
    found = auc_difference(margins, others, is_yes, np.arange(4))
    assert found.value == 0.25
    assert found.error == pytest.approx(np.sqrt(4 / 3 * 4 * 0.125**2))
    assert (found.samples, found.clusters) == (4, 4)
    same = auc_difference(margins, 2 * margins + 1, is_yes, np.arange(4))
    assert (same.value, same.low, same.high) == (0, None, None)


def test_error_agrees_with_the_bootstrap_over_images() -> None:
    one, other, is_yes, clusters = questions(80, 1.5, seed=0)
    draws = []
    for drawn in RANDOM.integers(80, size=(1000, 80)):
        taken = (4 * drawn[:, None] + np.arange(4)).ravel()
        draws.append(auc(one[taken], is_yes[taken]) - auc(other[taken], is_yes[taken]))
    found = auc_difference(one, other, is_yes, clusters)
    assert found.error == pytest.approx(np.std(draws), rel=0.1)
    order = RANDOM.permutation(320)
    assert auc_difference(one[order], other[order], is_yes[order], clusters[order]) == found


def test_swap_test_is_that_of_all_exchanges() -> None:
    one, other, is_yes, clusters = questions(5, 3.0, seed=4)
    one = np.round(one, 1)  # with ties
    ranks = np.array([[(each < values).sum() + (each == values).sum() / 2 for each in values]
                      for values in (one, other)])  # fmt: skip
    observed = by_pairs(one, is_yes) - by_pairs(other, is_yes)
    large = []
    for pattern in itertools.product([0, 1], repeat=5):
        swapped = np.array(pattern)[clusters]
        own, theirs = np.where(swapped, ranks[::-1], ranks)
        difference = by_pairs(own, is_yes) - by_pairs(theirs, is_yes)
        large.append(abs(difference) >= abs(observed) - 1e-12)
    test = auc_swap_test(one, other, is_yes, clusters)
    assert test.p == np.mean(large)
    assert (test.images, test.differing) == (5, 5)


def test_no_scale_or_offset_counts() -> None:
    one, other, is_yes, clusters = questions(60, 3.0, seed=5)
    test = auc_swap_test(one, other, is_yes, clusters)
    assert test.p < 0.05
    assert auc_swap_test(one + 7, np.exp(other / 9), is_yes, clusters) == test
    assert auc_swap_test(other, one, is_yes, clusters) == test
    assert auc_swap_test(one, 3 * one, is_yes, clusters).differing == 0


def test_equal_methods_are_told_apart_by_chance_only() -> None:
    found = [
        (auc_swap_test(*each).p <= 0.05, auc_difference(*each).excludes_zero)
        for each in (questions(30, 1.0, seed) for seed in range(120))
    ]
    assert (np.mean(found, axis=0) < 0.11).all()
    assert (np.mean(found, axis=0) > 0.005).all()


@pytest.mark.parametrize(
    ("margins", "is_yes", "message"),
    [
        ([1.0, 2.0], [True, True], "all questions have the answer yes"),
        ([1.0, 2.0], [False, False], "no question has the answer yes"),
        ([1.0, np.nan], [True, False], "1 of 2 margins are NaN"),
    ],
)
def test_refusals(margins: list[float], is_yes: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc_swap_test(np.array(margins), np.array(margins), np.array(is_yes), np.arange(2))
    with pytest.raises(ValueError, match=message):
        auc(np.array(margins), np.array(is_yes))
