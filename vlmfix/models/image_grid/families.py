"""Image grids of every model family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid import found, internvl, qwen, square, tiles
from vlmfix.models.image_grid.grids import Box, ImageTokens, by_prompt, disagreement


def token_grids(
    config: PreTrainedConfig,
    inputs: Mapping[str, Any],
    image_tokens: Tensor,
    video_tokens: Tensor | None = None,
    numbers: Tensor | None = None,
) -> list[list[ImageTokens]]:
    """How the image tokens of prompts form grids, from model inputs alone.

    Args:
        config: of the whole model.
        inputs: what `model.generate` gets beside the token ids: `pixel_values`, and `image_grid_thw`,
            `image_sizes` or `batch_num_images` where the family has them; of videos `pixel_values_videos` and
            `video_grid_thw`.
        image_tokens: placeholders of features, `(batch, prompt)` bool.
        video_tokens: which of these are of videos, likewise; None: none.
        numbers: which image of its prompt each token belongs to, -1 for none, likewise int64; of families
            without an entry here, where an image may be several runs of placeholders. None: not known.

    Returns:
        For each prompt, its images and videos in order.

    Raises:
        UnsupportedError: the layout of the tokens is not known exactly for this model, or does not agree
            with their number.
    """
    family = _entry(config)
    if video_tokens is None:
        video_tokens = torch.zeros_like(image_tokens)
    images: list[ImageTokens] = []
    videos: list[ImageTokens] = []
    if inputs.get("pixel_values") is not None:
        shown = image_tokens & ~video_tokens
        if family is None:
            images = found.tokens(config, inputs, found.runs_of(shown, numbers))
        else:
            images = family.tokens(config, inputs, shown)
    if inputs.get("pixel_values_videos") is not None:
        videos = (_no_videos if family is None else family.videos)(config, inputs)
    prompts = by_prompt(images, videos, image_tokens, video_tokens)
    if prompts is None:
        raise disagreement([*images, *videos], image_tokens)
    return prompts


def place(
    images: Sequence[ImageTokens],
    config: PreTrainedConfig,
    image_processor: BaseImageProcessor,
    sizes: Sequence[tuple[int, int]],
) -> list[ImageTokens]:
    """The same images with the box of every block on the original image.

    Args:
        images: of a prompt, as `token_grids` gives them.
        config: of the whole model.
        image_processor: the one that made the model inputs, at the settings with which it made them.
        sizes: width and height of the original images in pixels.

    Raises:
        UnsupportedError: the processor, or one of its settings, cuts images in a way not known here.
    """
    family = _entry(config)
    kind = type(image_processor).__name__
    if family is not None and kind.removesuffix("Pil").removesuffix("Fast") not in family.processors:
        raise UnsupportedError(
            f"where {kind} cuts images of {config.model_type} is not known; use "
            f"{' or '.join(family.processors)}"
        )
    boxes = found.boxes if family is None else family.boxes
    placed = []
    for image, (width, height) in zip(images, sizes, strict=True):
        own = boxes(config, image_processor, image, width, height)
        grids = zip(image.grids, own, strict=True)
        placed.append(
            ImageTokens(tuple(dataclasses.replace(grid, box=box) for grid, box in grids), image.count)
        )
    return placed


def _no_videos(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[ImageTokens]:
    raise UnsupportedError(
        f"where the tokens of a video of {config.model_type} lie on its frames is not known; show its frames "
        "as images"
    )


class _Family(NamedTuple):
    """What one family does with images, the image processors of which it is known, and videos."""

    tokens: Callable[[PreTrainedConfig, Mapping[str, Any], Tensor], list[ImageTokens]]
    boxes: Callable[[PreTrainedConfig, Any, ImageTokens, int, int], list[Box]]
    processors: tuple[str, ...]
    videos: Callable[[PreTrainedConfig, Mapping[str, Any]], list[ImageTokens]] = _no_videos


_QWEN = _Family(qwen.tokens, qwen.boxes, ("Qwen2VLImageProcessor",), qwen.video_tokens)
_FAMILIES = {
    "llava": _Family(square.tokens, square.boxes, ("CLIPImageProcessor", "SiglipImageProcessor")),
    "llava_next": _Family(tiles.tokens, tiles.boxes, ("LlavaNextImageProcessor",)),
    "llava_next_video": _Family(tiles.tokens, tiles.boxes, ("LlavaNextImageProcessor",)),
    "llava_onevision": _Family(
        tiles.tokens, tiles.boxes, ("LlavaOnevisionImageProcessor",), tiles.video_tokens
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": _Family(internvl.tokens, internvl.boxes, ("GotOcr2ImageProcessor",)),
}


def _entry(config: PreTrainedConfig) -> _Family | None:
    """The entry of a family; None: its grids are found from the inputs."""
    vision = getattr(config, "vision_config", None)
    return None if getattr(vision, "model_type", None) == "pixtral" else _FAMILIES.get(config.model_type)
