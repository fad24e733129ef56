"""Grids of families without an entry of their own, from the inputs of the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vlmfix
from vlmfix.models.image_grid.found import runs_of, tokens

TILE = torch.ones(3, 8, 8)


def config(**fields: Any) -> Any:
    return SimpleNamespace(model_type="new", vision_config=SimpleNamespace(patch_size=4), **fields)


@pytest.mark.parametrize(
    ("fields", "inputs", "runs", "blocks"),
    [
        # squares, one an image
        ({}, {"pixel_values": torch.ones(2, 3, 8, 8)}, [[4], [4]], [[(2, 2)], [(2, 2)]]),
        # tiles in one run, and in runs of their own
        ({}, {"pixel_values": torch.ones(4, 3, 8, 8)}, [[4], [12]], [[(2, 2)], [(2, 2)] * 3]),
        ({}, {"pixel_values": torch.ones(4, 3, 8, 8)}, [[4], [4, 4, 4]], [[(2, 2)], [(2, 2)] * 3]),
        # rows of prompts, filled up by an empty tile
        (
            {},
            {"pixel_values": torch.stack([torch.stack([TILE, 0 * TILE]), torch.stack([TILE, TILE])])},
            [[4], [4, 4]],
            [[(2, 2)], [(2, 2)] * 2],
        ),
        # rows with breaks
        ({}, {"pixel_values": torch.ones(2, 3, 8, 8)}, [[3, 3], [2, 2, 2]], [[(2, 3)], [(3, 2)]]),
        # merged patches, at a size of the image's own
        (
            {"spatial_merge_size": 2},
            {"image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 2]])},
            [[6], [1]],
            [[(2, 3)], [(1, 1)]],
        ),
        (
            {"spatial_merge_size": 2},
            {"image_grid_thw": torch.tensor([[1, 4, 6]]), "image_merge_sizes": torch.tensor([1])},
            [[24]],
            [[(4, 6)]],
        ),
        ({"spatial_merge_size": 2}, {"image_sizes": torch.tensor([[16, 24]])}, [[3, 3]], [[(2, 3)]]),
        # which runs are of one image is told by the sizes alone
        (
            {"spatial_merge_size": 2},
            {"image_sizes": torch.tensor([[16, 24], [16, 16]])},
            [[3], [3], [2], [2]],
            [[(2, 3)], [(2, 2)]],
        ),
        (
            {"downsample_factor": 2},
            {"spatial_shapes": torch.tensor([[4, 4], [3, 4], [2, 2]])},
            [[4, 4], [1]],
            [[(2, 2), (2, 2)], [(1, 1)]],
        ),
    ],
)
def test_blocks(fields: Any, inputs: Any, runs: Any, blocks: list[list[tuple[int, int]]]) -> None:
    found = tokens(config(**fields), inputs, runs)
    assert [[(grid.rows, grid.columns) for grid in image.grids] for image in found] == blocks
    for image in found:
        assert sorted(torch.cat([grid.offsets().flatten() for grid in image.grids]).tolist()) == list(
            range(image.count)
        )


@pytest.mark.parametrize(
    ("fields", "inputs", "runs", "reason"),
    [
        ({}, {"pixel_values": torch.ones(1, 3, 8, 8)}, [[5]], r"runs of \[\[5\]\] tokens fit no grid"),
        ({}, {}, [[4]], "fit no grid"),
        ({"qformer_config": {}}, {"pixel_values": torch.ones(1, 3, 8, 8)}, [[4]], "learned queries"),
        (
            {"spatial_merge_size": 2},
            {"image_grid_thw": torch.tensor([[1, 4, 6]])},
            [[7]],
            "fit no grid",
        ),
    ],
)
def test_what_fits_no_grid_is_refused(fields: Any, inputs: Any, runs: Any, reason: str) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match=reason):
        tokens(config(**fields), inputs, runs)


def test_runs() -> None:
    image = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 1]]).bool()
    numbers = torch.tensor([[-1, 0, 0, 0, 0, -1], [0, -1, 1, 1, 1, 1]])
    assert runs_of(image, None) == [[2], [1], [1], [1], [1]]
    assert runs_of(image, numbers) == [[2, 1], [1], [1, 1]]
