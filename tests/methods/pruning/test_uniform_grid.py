"""Uniform grid: the vectors of its specification, and every grid and count within reason."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.uniform_grid import UniformGrid, grid_cells, spread
from vlmfix.models.image_grid.families import token_grids
from vlmfix.models.image_grid.grids import ImageTokens, TokenGrid


@pytest.mark.parametrize(
    ("height", "width", "count", "expected"),
    [
        (4, 4, 4, [5, 7, 13, 15]),
        (4, 4, 6, [4, 6, 7, 12, 14, 15]),
        (6, 4, 6, [5, 7, 13, 15, 21, 23]),
        (2, 8, 5, [8, 10, 12, 13, 15]),
    ],
)
def test_vectors(height: int, width: int, count: int, expected: list[int]) -> None:
    assert grid_cells(height, width, count) == expected


def test_vector_of_llava() -> None:
    """8 x 7 cells and two of those between them."""
    cells = grid_cells(24, 24, 58)
    rows, columns = [int((i + 0.5) * 3) for i in range(8)], [int((j + 0.5) * 24 / 7) for j in range(7)]
    coarse = {24 * row + column for row in rows for column in columns}
    others = [cell for cell in range(576) if cell not in coarse]
    assert cells == sorted(coarse | {others[130], others[390]})


def test_every_grid_gives_as_many_cells_as_asked() -> None:
    for height in range(1, 8):
        for width in range(1, 8):
            for count in range(1, height * width + 1):
                cells = grid_cells(height, width, count)
                assert len(set(cells)) == len(cells) == count
                assert min(cells) >= 0
                assert max(cells) < height * width


def test_blocks_share_the_budget_and_newlines_leave() -> None:
    """A tiled image of 4 x 4 and 2 x 4 tokens with newlines, then one of 4 x 4."""
    tiled = ImageTokens((TokenGrid.plain(0, 4, 4), TokenGrid(16, 2, 4, row_stride=5)), 26)
    square = ImageTokens((TokenGrid.plain(0, 4, 4),), 16)
    tiles = [16, 17, 18, 19, 21, 22, 23, 24]
    chosen = spread([tiled, square], 10)
    assert chosen == [*grid_cells(4, 4, 4), *(tiles[cell] for cell in grid_cells(2, 4, 2)), 31, 33, 39, 41]
    assert spread([tiled, square], 41) == [*range(16), *tiles, *range(26, 42)]
    for count in range(1, 41):
        assert len(set(spread([tiled, square], count))) == count


def test_equals_masking(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (2, 1, 0))
    dropped = inputs["input_ids"] == families.IMAGE_TOKEN
    images = token_grids(model.config, inputs, dropped)
    for b in range(2):
        places = dropped[b].nonzero().flatten()
        chosen = range(len(places)) if len(places) <= 5 else spread(images[b], 5)
        dropped[b, places[list(chosen)]] = False
    with UniformGrid(kept_tokens=5)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, enter=lambda layer, states, seen: (dropped, states))
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)


def test_no_tokens_to_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="kept_tokens is 0; it must be a number of tokens, 1 or more"):
        UniformGrid(kept_tokens=0)
