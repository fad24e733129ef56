"""LLaVA: one square of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid.grids import Box, ImageTokens, TokenGrid


def tokens(config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor) -> list[ImageTokens]:
    pixel_values = inputs["pixel_values"]
    patch = config.vision_config.patch_size
    rows, columns = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    first = class_tokens(config)
    grid = TokenGrid.plain(first, rows, columns)
    return [ImageTokens((grid,), first + rows * columns)] * len(pixel_values)


def boxes(config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int) -> list[Box]:
    if getattr(processor, "do_pad", None):
        raise UnsupportedError(
            "where an image lies after do_pad is not known; use an image processor without it"
        )
    size = processor.size
    resized_width, resized_height = width, height
    if processor.do_resize:
        if size.shortest_edge and not size.longest_edge:
            short = min(width, height)
            resized_width = int(size.shortest_edge * width / short)
            resized_height = int(size.shortest_edge * height / short)
        elif size.height and size.width:
            resized_width, resized_height = size.width, size.height
        else:
            raise UnsupportedError(
                f"size {dict(size)} of the image processor is not supported; set shortest_edge, or height "
                "and width"
            )
    left = top = 0
    if getattr(processor, "do_center_crop", None):
        crop = processor.crop_size
        left, top = (resized_width - crop.width) // 2, (resized_height - crop.height) // 2
        if left < 0 or top < 0:
            raise UnsupportedError(
                f"the image processor pads an image of {resized_width} x {resized_height} pixels to the crop "
                f"of {crop.width} x {crop.height}, and where is not known; make size at least crop_size"
            )
    (grid,) = image.grids
    patch = config.vision_config.patch_size
    across, down = width / resized_width, height / resized_height
    return [
        (left * across, top * down, (left + grid.columns * patch) * across, (top + grid.rows * patch) * down)
    ]


def class_tokens(config: PreTrainedConfig) -> int:
    """Tokens before the patches of an image that the language model sees."""
    vision, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    known = {("clip_vision_model", "default"): 0, ("clip_vision_model", "full"): 1}
    known["siglip_vision_model", "full"] = 0
    if (vision, strategy) not in known:
        raise UnsupportedError(
            f"{config.model_type} with the vision encoder {vision} and vision_feature_select_strategy="
            f"{strategy!r} lays out its image tokens in a way not known here; use a CLIP encoder, or SigLIP "
            "with 'full'"
        )
    return known[vision, strategy]
