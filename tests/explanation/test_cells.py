"""Maps of tokens on cells and pixels: plain grids, tiles that overlap, and borders that nobody sees."""

from __future__ import annotations

import numpy as np
import pytest

from vlmfix.explanation.cells import Cells
from vlmfix.explanation.rollout import smooth
from vlmfix.models.image_grid.grids import ImageTokens, TokenGrid


def test_a_plain_grid_is_its_own_cells() -> None:
    grid = TokenGrid(0, 2, 3, 4, box=(0, 10, 60, 50))  # a newline after each row
    cells = Cells(ImageTokens((grid,), 8), (60, 60))
    values = np.arange(8.0)
    assert cells.shape == (2, 3)
    assert cells.of_tokens(values).tolist() == [[0, 1, 2], [4, 5, 6]]
    assert np.isnan(cells.pixels(values)[:10]).all()
    assert cells.corners().tolist()[:4] == [
        [0, 10, 20, 30],
        [20, 10, 40, 30],
        [40, 10, 60, 30],
        [0, 30, 20, 50],
    ]
    expected = values.copy()
    expected[[0, 1, 2, 4, 5, 6]] = smooth(np.array([[0.0, 1, 2], [4, 5, 6]])).ravel()
    np.testing.assert_allclose(cells.smoothed(values), expected)


def test_cells_beyond_the_picture_are_cut() -> None:
    grid = TokenGrid.plain(0, 2, 2)
    cells = Cells(
        ImageTokens((TokenGrid(0, 2, 2, 2, box=(-10, 0, 30, 40)),), grid.rows * grid.columns), (20, 40)
    )
    assert cells.corners().tolist() == [[0, 0, 10, 20], [10, 0, 20, 20], [0, 20, 10, 40], [10, 20, 20, 40]]


def test_blocks_that_see_the_same_area_add_up() -> None:
    whole = TokenGrid(0, 2, 2, 2, box=(0, 0, 64, 32))
    left = TokenGrid(4, 2, 2, 2, box=(0, 0, 32, 32))
    cells = Cells(ImageTokens((whole, left), 8), (64, 32))
    assert cells.shape == (16, 32)
    found = cells.of_tokens(np.ones(8))
    assert found[:, :16] == pytest.approx(np.full((16, 16), 2.0))
    assert found[:, 16:] == pytest.approx(np.ones((16, 16)))
    assert len(cells.corners()) == 16 * 32
    assert cells.box == (0, 0, 64, 32)
