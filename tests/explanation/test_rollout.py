"""Rollout and contrast on the numbers of the specification, and against matrices multiplied one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlmfix.explanation.rollout import (
    contrast,
    gaussian,
    head_looks,
    merged_heads,
    otsu_threshold,
    roll_out,
    smooth,
)

IMAGE = torch.tensor([True, True, False])
LAYERS = (
    torch.tensor([[[1, 0, 0], [0.6, 0.4, 0], [0.2, 0.5, 0.3]], [[1, 0, 0], [0.2, 0.8, 0], [0.1, 0.1, 0.8]]]),
    torch.tensor([[[1, 0, 0], [0.5, 0.5, 0], [0.3, 0.6, 0.1]], [[1, 0, 0], [0.9, 0.1, 0], [0.4, 0.2, 0.4]]]),
)


def test_rollout() -> None:
    merged = []
    for weights, expected in zip(LAYERS, ([1.0, 0.904762], [0.913043, 1.0]), strict=True):
        looks = head_looks(weights, IMAGE)
        looks = looks / looks.max()
        assert looks.tolist() == pytest.approx(expected, abs=1e-6)
        merged.append(merged_heads(weights, looks))
    rolled = roll_out(torch.tensor([2]), merged)
    assert rolled[0].tolist() == pytest.approx([0.246197, 0.237945, 0.470827], abs=1e-6)
    eye = torch.eye(3)
    whole = (0.5 * merged[1] + 0.5 * eye) @ (0.5 * merged[0] + 0.5 * eye)
    torch.testing.assert_close(roll_out(torch.arange(3), merged), whole)


def test_contrast() -> None:
    found = contrast(np.array([0.30, 0.10, 0.05, 0.02]), np.array([0.10, 0.15, 0.04, 0.02]))
    assert found.tolist() == pytest.approx([1, 0, 0.05, 0])
    assert contrast(np.ones(3), np.ones(3)).tolist() == [0, 0, 0]


def test_gaussian_weights() -> None:
    wide = [0.004433, 0.054006, 0.242036, 0.399050, 0.242036, 0.054006, 0.004433]
    assert gaussian(1, 7).tolist() == pytest.approx(wide, abs=1e-6)
    assert gaussian(1, 3).tolist() == pytest.approx([0.274069, 0.451863, 0.274069], abs=1e-6)


def test_smoothing_mirrors_the_border() -> None:
    grid = np.random.default_rng(0).random((4, 5))
    padded, weights = np.pad(grid, 3, mode="reflect"), np.outer(gaussian(1, 7), gaussian(1, 7))
    expected = [
        [(padded[row : row + 7, column : column + 7] * weights).sum() for column in range(5)]
        for row in range(4)
    ]
    np.testing.assert_allclose(smooth(grid), expected)


def test_threshold_of_otsu() -> None:
    values = np.array([0, 0.1, 0.1, 0.2, 0.7, 0.8, 0.9, 1])
    threshold = otsu_threshold(values)
    assert threshold == pytest.approx(0.201172, abs=1e-6)
    assert (values > threshold).tolist() == [False] * 4 + [True] * 4
