"""Qwen-VL: the whole image at its own aspect ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid.grids import Box, ImageTokens, TokenGrid, frames_of


def tokens(config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor) -> list[ImageTokens]:
    merge = config.vision_config.spatial_merge_size
    images = []
    for frames, height, width in inputs["image_grid_thw"].tolist():
        if frames != 1:
            raise UnsupportedError(f"image_grid_thw has {frames} frames; an image has 1")
        rows, columns = height // merge, width // merge
        images.append(ImageTokens((TokenGrid.plain(0, rows, columns),), rows * columns))
    return images


def video_tokens(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[ImageTokens]:
    merge = config.vision_config.spatial_merge_size
    return [
        frames_of(frames, height // merge, width // merge)
        for frames, height, width in inputs["video_grid_thw"].tolist()
    ]


def boxes(config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int) -> list[Box]:
    return [(0.0, 0.0, float(width), float(height))]
