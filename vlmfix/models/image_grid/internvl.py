"""InternVL: tiles of the squeezed image one after the other, then all of it as a thumbnail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid.grids import Box, ImageTokens, TokenGrid, disagreement


def tokens(config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor) -> list[ImageTokens]:
    height, width = inputs["pixel_values"].shape[-2:]
    patch_height, patch_width = _pair(config.vision_config.patch_size)
    rows, columns = height // patch_height, width // patch_width
    if rows != columns or config.vision_feature_select_strategy != "default":
        raise UnsupportedError(
            f"tiles of {rows} x {columns} patches with vision_feature_select_strategy="
            f"{config.vision_feature_select_strategy!r} make no square; use the checkpoint as it is"
        )
    side = int(rows * config.downsample_ratio)
    images = []
    for tokens in _runs(image_tokens):
        tiles, rest = divmod(tokens, side * side)
        if rest:
            raise UnsupportedError(
                f"an image has {tokens} placeholders, which are no whole tiles of {side} x {side}; pass the "
                "inputs of one processor call"
            )
        grids = tuple(TokenGrid.plain(tile * side * side, side, side) for tile in range(tiles))
        images.append(ImageTokens(grids, tokens))
    if sum(len(image.grids) for image in images) != len(inputs["pixel_values"]):
        raise disagreement(images, image_tokens)
    return images


def _runs(image_tokens: Tensor) -> list[int]:
    """Lengths of the runs of placeholders, prompt by prompt; text stands between two images."""
    padded = torch.nn.functional.pad(image_tokens.int(), (1, 1)).diff(dim=1).flatten()
    return ((padded == -1).nonzero() - (padded == 1).nonzero()).flatten().tolist()


def boxes(config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int) -> list[Box]:
    whole = (0.0, 0.0, float(width), float(height))
    tiles = len(image.grids)
    if tiles == 1:
        return [whole]
    size = (processor.size.height, processor.size.width)
    columns, rows = get_optimal_tiled_canvas(
        (height, width), size, processor.min_patches, processor.max_patches
    )
    if columns * rows != tiles - 1:
        raise UnsupportedError(
            f"the image processor would cut an image of {width} x {height} pixels into {columns} x {rows} "
            f"tiles, but the prompt holds {tiles - 1} and a thumbnail; do not override settings in the call"
        )
    tile_width, tile_height = width / columns, height / rows
    boxes = [
        (column * tile_width, row * tile_height, (column + 1) * tile_width, (row + 1) * tile_height)
        for row in range(rows)
        for column in range(columns)
    ]
    return [*boxes, whole]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
