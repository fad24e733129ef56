"""LLaVA-NeXT and LLaVA-OneVision: the squeezed image, then tiles of the padded one without the padding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.image_processing_utils import select_best_resolution

from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid.grids import Box, ImageTokens, TokenGrid, frames_of
from vlmfix.models.image_grid.square import class_tokens


def video_tokens(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[ImageTokens]:
    """Pooled frames without tiles, then one newline token."""
    pixels = inputs["pixel_values_videos"]
    side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
    return [frames_of(pixels.shape[1], side, side, others=1)] * len(pixels)


class _Canvas(NamedTuple):
    """How an image of any resolution is laid on tiles, in pixels and tokens of the canvas."""

    image_width: int
    image_height: int
    width: int
    height: int
    pitch: float
    cut_rows: int
    cut_columns: int
    rows: int
    columns: int


def _canvas(config: PreTrainedConfig, width: int, height: int) -> _Canvas:
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    canvas_height, canvas_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = canvas_height // tile * side, canvas_width // tile * side
    across, down = canvas_width / width, canvas_height / height
    if across < down:
        image_width, image_height = canvas_width, min(math.ceil(height * across), canvas_height)
    else:
        image_width, image_height = min(math.ceil(width * down), canvas_width), canvas_height
    cut_rows = cut_columns = 0
    if width / height > columns / rows:
        cut_rows = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        cut_columns = (columns - int(round(width * (rows / height), 7))) // 2
    return _Canvas(
        image_width,
        image_height,
        canvas_width,
        canvas_height,
        tile / side,
        cut_rows,
        cut_columns,
        rows - 2 * cut_rows,
        columns - 2 * cut_columns,
    )


def tokens(config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor) -> list[ImageTokens]:
    if class_tokens(config) != 0:
        raise UnsupportedError(
            f"{config.model_type} cannot lay out tiles with class tokens; set vision_feature_select_strategy "
            "to 'default'"
        )
    side = config.vision_config.image_size // config.vision_config.patch_size
    base = TokenGrid.plain(0, side, side)
    images = []
    for (height, width), tiled in zip(inputs["image_sizes"].tolist(), _is_tiled(inputs), strict=True):
        if not tiled:
            images.append(ImageTokens((base,), side * side + 1))
            continue
        canvas = _canvas(config, width, height)
        rows, columns = _shrunk(config, canvas.rows, canvas.columns, side)
        tiles = TokenGrid(side * side, rows, columns, row_stride=columns + 1)
        images.append(ImageTokens((base, tiles), side * side + rows * (columns + 1)))
    return images


def _is_tiled(inputs: Mapping[str, Any]) -> list[bool]:
    """LLaVA-OneVision shows an image in tiles only where the processor was told that it stands alone."""
    numbers = inputs.get("batch_num_images")
    if numbers is None:
        return [True] * len(inputs["image_sizes"])
    return [number == 1 for number in numbers.tolist() for _ in range(number)]


def _shrunk(config: PreTrainedConfig, rows: int, columns: int, side: int) -> tuple[int, int]:
    """LLaVA-OneVision interpolates a grid of more tokens than that of `anyres_max_N` tiles."""
    if config.model_type != "llava_onevision":
        return rows, columns
    limit = int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * side**2
    ratio = math.sqrt(rows * columns / limit)
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def boxes(config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int) -> list[Box]:
    tile = config.vision_config.image_size
    sizes = [processor.size] + [processor.crop_size] * bool(processor.do_center_crop)
    if any({size.height, size.width, size.shortest_edge} - {None} != {tile} for size in sizes):
        raise UnsupportedError(
            f"the image processor makes tiles of {dict(sizes[-1])} pixels, but the vision encoder reads "
            f"{tile}; use the processor of the checkpoint"
        )
    pinpoints = [tuple(each) for each in config.image_grid_pinpoints]
    if [tuple(each) for each in processor.image_grid_pinpoints] != pinpoints:
        raise UnsupportedError(
            "image_grid_pinpoints of the image processor and of the model differ; use the processor of the "
            "checkpoint"
        )
    seen = image.grids[0].columns * config.vision_config.patch_size / tile
    if len(image.grids) == 1:
        side = max(width, height)
        x, y = -((side - width) // 2), -((side - height) // 2)
        return [(x, y, x + seen * side, y + seen * side)]
    # Patches that do not fill a tile leave less than one patch of each; the grid is laid over all of it.
    canvas = _canvas(config, width, height)
    across, down = width / canvas.image_width, height / canvas.image_height
    left = canvas.cut_columns * canvas.pitch - (canvas.width - canvas.image_width) // 2
    top = canvas.cut_rows * canvas.pitch - (canvas.height - canvas.image_height) // 2
    right, bottom = left + canvas.columns * canvas.pitch, top + canvas.rows * canvas.pitch
    return [
        (0.0, 0.0, seen * width, seen * height),
        (left * across, top * down, right * across, bottom * down),
    ]
