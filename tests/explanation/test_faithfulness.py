"""Deletion and insertion: good maps before random ones, and bad ones after."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image

import vlmfix
from vlmfix.explanation.cells import Cells
from vlmfix.explanation.faithfulness import Curves, Faithfulness, judge_maps
from vlmfix.models.image_grid.grids import ImageTokens, TokenGrid

SIDE, CELL = 6, 8


@pytest.fixture
def cells() -> Cells:
    size = SIDE * CELL
    grid = TokenGrid(0, SIDE, SIDE, SIDE, box=(0, 0, size, size))
    return Cells(ImageTokens((grid,), SIDE * SIDE), (size, size))


@pytest.fixture
def picture() -> Image.Image:
    """A white square with a line in it, on noise."""
    pixels = np.random.default_rng(0).integers(0, 90, (SIDE * CELL, SIDE * CELL, 3), dtype=np.uint8)
    pixels[2 * CELL : 4 * CELL, 2 * CELL : 4 * CELL] = 255
    return Image.fromarray(pixels)


def test_good_maps_beat_random_orders_and_bad_ones_lose(cells: Cells, picture: Image.Image) -> None:
    def score(pictures: Iterable[Image.Image]) -> list[float]:
        """The share of the square that is there."""
        whole = (2 * CELL) ** 2 * 3
        return [float((np.asarray(each) == 255).sum() / whole) for each in pictures]

    good = np.zeros((SIDE, SIDE))
    good[2:4, 2:4] = [[4, 3], [2, 1]]
    found = judge_maps(score, picture, cells, {"good": good, "bad": -good}, steps=SIDE * SIDE)
    assert found.full == 1
    assert found.plain == 0
    assert found.curves["good"].deletion[:6] == pytest.approx((1, 0.75, 0.5, 0.25, 0, 0))
    assert found.curves["good"].insertion[4] == pytest.approx(1)
    assert found.curves["good"].areas[0] < min(each.areas[0] for each in found.random)
    assert found.verdict("good") == "better than every random order, by deletion and by insertion"
    assert all(gain > 0 for gain in found.gains("good"))
    assert "worse than every random order by deletion" in found.verdict("bad")
    assert all(gain < 0 for gain in found.gains("bad"))
    assert found.curves["reverse"].deletion[-5:-1] == pytest.approx((1, 0.75, 0.5, 0.25))


def test_a_word_that_the_picture_does_not_move_has_no_verdict() -> None:
    flat = Curves((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = Faithfulness(0.5, 0.5, 0.48, {"band": flat}, (flat,))
    assert not found.has_effect
    assert found.verdict("band") == "the picture hardly moves this word, so no map of it can be faithful"


def test_maps_inside_the_range_of_random_orders_are_not_told_apart() -> None:
    low, middle, high = (Curves((1, share, 0), (0, share, 1)) for share in (0.2, 0.5, 0.8))
    found = Faithfulness(1, 0, 0, {"band": middle}, (low, high))
    assert found.verdict("band").count("not distinguishable from a random order") == 2
    assert found.gains("band") == pytest.approx((0, 0))


@pytest.mark.slow
def test_maps_of_the_demo_scene(tested: vlmfix.Explanation) -> None:
    found = tested.faithfulness
    assert found is not None
    [word] = tested.plain.words[tested.word].tokens
    assert found.full == pytest.approx(float(np.exp(tested.plain.log_p[word])), abs=1e-4)
    assert set(found.curves) == {*tested.maps, "centre", "reverse"}
    assert len(found.random) == 5
    for curves in (*found.curves.values(), *found.random):
        assert curves.deletion[0] == found.full
        assert curves.insertion[0] == found.blurred
        assert curves.deletion[-1] == found.plain
        assert curves.insertion[-1] == found.full
    assert found.verdict("band") == "better than every random order, by deletion and by insertion"
    assert found.gains("reverse")[0] < 0 < found.gains("band")[0]
    page = tested.html()
    assert found.verdict("band") in page
    assert "share of the picture taken away" in page
    assert tested.plot("faithfulness").axes
