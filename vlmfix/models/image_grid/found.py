"""Grids found from the inputs of a model, for families that have no entry of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.errors import UnsupportedError
from vlmfix.models.image_grid.grids import Box, ImageTokens, TokenGrid

# What a configuration has whose image tokens are learned queries: they lie nowhere on the image.
_QUERIES = ("perceiver_config", "qformer_config", "num_query_tokens", "projector_patch_to_query_dict")


def tokens(
    config: PreTrainedConfig, inputs: Mapping[str, Any], runs: Sequence[Sequence[int]]
) -> list[ImageTokens]:
    """The images of a batch, in order.

    Args:
        config: of the whole model.
        inputs: tensors of the images.
        runs: of each image, how many placeholders stand one after the other, without other tokens between.

    Raises:
        UnsupportedError: the numbers fit no grid that is known.
    """
    if any(getattr(config, name, None) is not None for name in _QUERIES):
        raise UnsupportedError(
            f"image tokens of {config.model_type} are learned queries, which lie nowhere on the image"
        )
    counts = [sum(own) for own in runs]
    for found in (_by_grid(config, inputs), _by_size(config, inputs), _by_shape(config, inputs, runs)):
        sizes = [sum(rows * columns for rows, columns in own) for own in found or ()]
        # Where nothing tells which runs are of one image, the sizes do.
        if sizes and sum(sizes) == sum(counts) and set(accumulate(sizes)) <= set(accumulate(counts)):
            return [_image(own) for own in found or ()]
    by_runs = _by_runs(inputs, runs)
    if by_runs is None:
        raise UnsupportedError(
            f"where the image tokens of {config.model_type} lie on the image is not known: runs of "
            f"{[list(own) for own in runs]} tokens fit no grid"
        )
    return [_image(own) for own in by_runs]


Shapes = list[tuple[int, int]]
"""Rows and columns of the blocks of an image."""


def _image(shapes: Shapes) -> ImageTokens:
    grids, start = [], 0
    for rows, columns in shapes:
        grids.append(TokenGrid.plain(start, rows, columns))
        start += rows * columns
    return ImageTokens(tuple(grids), start)


def _by_grid(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[Shapes] | None:
    """Families that say how many patches an image has, of which blocks are merged into tokens."""
    grids = inputs.get("image_grid_thw")
    if grids is None:
        return None
    merges = inputs.get("image_merge_sizes")
    merge = _first(config, "spatial_merge_size", "merge_size", "merge_kernel_size") or 1
    sizes = [merge] * len(grids) if merges is None else merges.tolist()
    return [
        [(height // size, width // size)] * frames
        for (frames, height, width), size in zip(grids.tolist(), sizes, strict=True)
    ]


def _by_size(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[Shapes] | None:
    """Families that show an image at its own size in pixels (Pixtral)."""
    sizes, patch = inputs.get("image_sizes"), _first(config, "patch_size")
    if sizes is None or patch is None:
        return None
    side = patch * (_first(config, "spatial_merge_size") or 1)
    return [[(height // side, width // side)] for height, width in sizes.tolist()]


def _by_shape(
    config: PreTrainedConfig, inputs: Mapping[str, Any], runs: Sequence[Sequence[int]]
) -> list[Shapes] | None:
    """Families that say how many patches each tile has (LFM2-VL); a tile is a run, or a part of one."""
    shapes = inputs.get("spatial_shapes")
    if shapes is None:
        return None
    factor = _first(config, "downsample_factor") or 1
    left = [(math.ceil(rows / factor), math.ceil(columns / factor)) for rows, columns in shapes.tolist()]
    found: list[Shapes] = []
    for own in runs:
        found.append([])
        while left and sum(rows * columns for rows, columns in found[-1]) < sum(own):
            found[-1].append(left.pop(0))
    return None if left else found


def _by_runs(inputs: Mapping[str, Any], runs: Sequence[Sequence[int]]) -> list[Shapes] | None:
    """One square of each run, or squares of the tiles that the pixels come in."""
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5) or not runs:
        return None
    tiles = len(pixels) if pixels.ndim == 4 else int(pixels.flatten(2).any(dim=2).sum())
    total, several = sum(map(sum, runs)), [len(own) for own in runs]
    if not tiles or total % tiles:
        return None
    size = total // tiles
    side = math.isqrt(size)
    if side * side == size and all(run % size == 0 for own in runs for run in own):
        return [[(side, side)] * (sum(own) // size) for own in runs]
    # One image a row of pixels, each row of tokens a run.
    is_rows = tiles == len(runs) and all(len(set(own)) == 1 for own in runs) and max(several) > 1
    return [[(len(own), own[0])] for own in runs] if is_rows else None


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    """A number of the configuration, or else of that of the vision encoder, under the first known name."""
    for source in (config, getattr(config, "vision_config", None)):
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, list | tuple) and value:
                value = value[0]
            if isinstance(value, int):
                return value
    return None


# What processors are told that show more or less of an image than all of it, once.
_OTHERWISE = (
    "do_pad",
    "do_center_crop",
    "do_image_splitting",
    "do_pan_and_scan",
    "crop_to_patches",
    "background_color",
    "max_image_tiles",
    "max_patches",
)


def boxes(config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int) -> list[Box]:
    """All of an image, which its processor only resizes.

    Raises:
        UnsupportedError: it is seen in several blocks, or the processor may crop or pad it.
    """
    told = [name for name in _OTHERWISE if getattr(processor, name, None)]
    if len(image.grids) != 1 or told:
        why = f"in {len(image.grids)} blocks" if len(image.grids) != 1 else f"under {', '.join(told)}"
        raise UnsupportedError(
            f"where {type(processor).__name__} shows an image of {config.model_type} {why} is not known; use "
            "a method that needs no place on the image"
        )
    return [(0.0, 0.0, float(width), float(height))]


def runs_of(image_tokens: Tensor, numbers: Tensor | None) -> list[list[int]]:
    """Lengths of the runs of placeholders of each image of a batch.

    Args:
        image_tokens: placeholders, `(batch, prompt)` bool.
        numbers: which image of its prompt each token belongs to, -1 for none, likewise int64; None: every run
            is an image of its own.
    """
    found: list[list[int]] = []
    rows = image_tokens.tolist() if numbers is None else numbers.tolist()
    for shown, own in zip(image_tokens.tolist(), rows, strict=True):
        images: dict[int, list[int]] = {}
        start = 0
        for number, (present, group) in enumerate(groupby(shown)):
            length = len(list(group))
            if present:
                images.setdefault(number if numbers is None else own[start], []).append(length)
            start += length
        found += images.values()
    return found
