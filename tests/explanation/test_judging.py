"""Figures of maps on the numbers of the specification, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmfix.explanation import judging

MAP = np.array([[0.1, 0.2, 0], [0.3, 1, 0.4], [0, 0.2, 0.1]])
MASK = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)


def test_figures_of_a_map() -> None:
    assert judging.energy(MAP, MASK) == pytest.approx((0.652174, 1 / 3), abs=1e-6)
    assert judging.attention_iou(MAP, MASK).value == pytest.approx(0.38)
    assert judging.attention_iou(MAP, MASK).chance == pytest.approx((1 / 3) / (5 / 3))
    for threshold, expected in ((0.25, 1 / 2), (0.35, 2 / 3), (0.5, 1 / 3)):
        assert judging.iou(threshold < MAP, MASK) == pytest.approx(expected)
    assert judging.iou_area(MAP, MASK) == pytest.approx(0.5)
    assert judging.auroc(MAP, MASK) == pytest.approx(0.805556, abs=1e-6)


def test_pointing_within_a_tolerance() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[20:30, 20:30] = True
    for point, expected in (((12, 12), 1), ((8, 8), 0), ((25, 25), 1), ((5, 25), 0)):
        saliency = np.zeros((40, 40))
        saliency[point[1], point[0]] = 1
        assert judging.pointing(saliency, mask) == pytest.approx((expected, 0.6875))
        inside = float(mask[point[1], point[0]])
        assert judging.pointing(saliency, mask, tolerance=0) == pytest.approx((inside, 0.0625))


def test_pixels_that_nobody_sees_or_judges_are_left_out() -> None:
    crowd = np.zeros_like(MASK)
    crowd[1, 0] = True
    found = judging.judge(MAP, MASK, ignored=crowd)
    assert found is not None
    assert found["energy"] == pytest.approx((1.5 / 2.0, 3 / 8))
    hidden = np.where(crowd, np.nan, MAP)
    assert judging.judge(hidden, MASK) == found


def test_flat_maps_and_masks_have_no_figures() -> None:
    assert judging.judge(np.ones((3, 3)), MASK) is None
    assert judging.judge(np.full((3, 3), np.nan), MASK) is None
    assert judging.judge(MAP, np.ones((3, 3), dtype=bool)) is None


def test_areas_under_curves() -> None:
    deletion, insertion = [0.9, 0.6, 0.3, 0.2, 0.1], [0.1, 0.5, 0.8, 0.85, 0.9]
    assert judging.area_under_curve(deletion) == pytest.approx(0.4)
    assert judging.area_under_curve(insertion) == pytest.approx(0.6625)
    random = judging.area_under_curve([0.9, 0.8, 0.6, 0.3, 0.1])
    assert random == pytest.approx(0.55)
    assert random - judging.area_under_curve(deletion) == pytest.approx(0.15)


def test_the_middle_of_a_picture() -> None:
    found = judging.centred_gaussian((8, 4))
    assert found.shape == (4, 8)
    assert np.unravel_index(found.argmax(), found.shape) == (1, 3)
    assert found[0, 0] == pytest.approx(np.exp(-0.5 * (1.75**2 + 1.5**2)))
