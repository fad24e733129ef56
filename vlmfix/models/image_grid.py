"""Where the image tokens of a prompt lie on the images, from what the model and the processor really do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor, select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from vlmfix.errors import UnsupportedError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the original image."""


@dataclass(frozen=True)
class TokenGrid:
    """A block of image tokens in raster order.

    Args:
        start: offset of its first token among the tokens of the image.
        rows: rows of tokens.
        columns: tokens in a row.
        row_stride: tokens from the start of one row to that of the next; one more than `columns` where a
            newline token ends each row.
        box: what the block covers of the original image, in pixels; beyond its edges where the processor
            pads. None before `place`.
    """

    start: int
    rows: int
    columns: int
    row_stride: int
    box: Box | None = None

    @classmethod
    def plain(cls, start: int, rows: int, columns: int) -> TokenGrid:
        """A block without newline tokens."""
        return cls(start, rows, columns, row_stride=columns)

    def offsets(self) -> Tensor:
        """Offsets of the tokens among those of the image, `(rows, columns)` int64."""
        first = self.start + self.row_stride * torch.arange(self.rows)
        return first[:, None] + torch.arange(self.columns)


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image or video.

    Args:
        grids: its blocks, in the order of the tokens; an area may be seen by several. Of a video, those of
            its frames (of two, where Qwen-VL reads two as one).
        count: number of tokens, with those that belong to no block (newlines).
    """

    grids: tuple[TokenGrid, ...]
    count: int


def token_grids(
    config: PreTrainedConfig,
    inputs: Mapping[str, Any],
    image_tokens: Tensor,
    video_tokens: Tensor | None = None,
) -> list[list[ImageTokens]]:
    """How the image tokens of prompts form grids, from model inputs alone.

    Args:
        config: of the whole model.
        inputs: what `model.generate` gets beside the token ids: `pixel_values`, and `image_grid_thw`,
            `image_sizes` or `batch_num_images` where the family has them; of videos `pixel_values_videos` and
            `video_grid_thw`.
        image_tokens: placeholders of features, `(batch, prompt)` bool.
        video_tokens: which of these are of videos, likewise; None: none.

    Returns:
        For each prompt, its images and videos in order.

    Raises:
        UnsupportedError: the layout of the tokens is not known exactly for this model, or does not agree
            with their number.
    """
    family = _family(config)
    if video_tokens is None:
        video_tokens = torch.zeros_like(image_tokens)
    images: list[ImageTokens] = []
    videos: list[ImageTokens] = []
    if inputs.get("pixel_values") is not None:
        images = family.tokens(config, inputs, image_tokens & ~video_tokens)
    if inputs.get("pixel_values_videos") is not None:
        videos = family.videos(config, inputs)
    prompts = by_prompt(images, videos, image_tokens, video_tokens)
    if prompts is None:
        raise _disagreement([*images, *videos], image_tokens)
    return prompts


class Counted(Protocol):
    """What stands for so many tokens of a prompt."""

    @property
    def count(self) -> int:
        """Number of tokens."""


_Counted = TypeVar("_Counted", bound=Counted)


def by_prompt(
    images: Sequence[_Counted], videos: Sequence[_Counted], image_tokens: Tensor, video_tokens: Tensor
) -> list[list[_Counted]] | None:
    """Images and videos in the order in which prompts show them; None: their tokens do not agree.

    Args:
        images: of all prompts, in order.
        videos: likewise, or parts of them.
        image_tokens: placeholders of both, `(batch, prompt)` bool.
        video_tokens: those of videos alone, likewise.
    """
    left = {False: list(images), True: list(videos)}
    prompts: list[list[_Counted]] = []
    for present, of_video in zip(image_tokens, video_tokens, strict=True):
        prompts.append([])
        kinds = of_video[present].tolist()
        start = 0
        while start < len(kinds):
            if not left[kinds[start]]:
                return None
            shown = left[kinds[start]].pop(0)
            if kinds[start : start + shown.count] != [kinds[start]] * shown.count:
                return None
            prompts[-1].append(shown)
            start += shown.count
    return None if left[False] or left[True] else prompts


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
    family = _family(config)
    name = type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if name not in family.processors:
        raise UnsupportedError(
            f"where {type(image_processor).__name__} cuts images of {config.model_type} is not known; use "
            f"{' or '.join(family.processors)}"
        )
    placed = []
    for image, (width, height) in zip(images, sizes, strict=True):
        boxes = family.boxes(config, image_processor, image, width, height)
        grids = zip(image.grids, boxes, strict=True)
        placed.append(
            ImageTokens(tuple(dataclasses.replace(grid, box=box) for grid, box in grids), image.count)
        )
    return placed


def _disagreement(images: Sequence[ImageTokens], image_tokens: Tensor) -> UnsupportedError:
    return UnsupportedError(
        f"the images make {[image.count for image in images]} tokens, but the prompts hold "
        f"{image_tokens.sum(dim=1).tolist()} placeholders; pass the inputs of one processor call"
    )


# LLaVA: one square of patches.


def _llava_tokens(
    config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor
) -> list[ImageTokens]:
    pixel_values = inputs["pixel_values"]
    patch = config.vision_config.patch_size
    rows, columns = pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch
    first = _class_tokens(config)
    grid = TokenGrid.plain(first, rows, columns)
    return [ImageTokens((grid,), first + rows * columns)] * len(pixel_values)


def _llava_boxes(
    config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int
) -> list[Box]:
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


# Qwen-VL: the whole image at its own aspect ratio.


def _qwen_tokens(
    config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor
) -> list[ImageTokens]:
    merge = config.vision_config.spatial_merge_size
    images = []
    for frames, height, width in inputs["image_grid_thw"].tolist():
        if frames != 1:
            raise UnsupportedError(f"image_grid_thw has {frames} frames; an image has 1")
        rows, columns = height // merge, width // merge
        images.append(ImageTokens((TokenGrid.plain(0, rows, columns),), rows * columns))
    return images


def _qwen_video_tokens(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[ImageTokens]:
    merge = config.vision_config.spatial_merge_size
    return [
        _frames(frames, height // merge, width // merge)
        for frames, height, width in inputs["video_grid_thw"].tolist()
    ]


def _frames(count: int, rows: int, columns: int, *, others: int = 0) -> ImageTokens:
    """A video of so many frames, with other tokens after them."""
    size = rows * columns
    grids = tuple(TokenGrid.plain(frame * size, rows, columns) for frame in range(count))
    return ImageTokens(grids, count * size + others)


def _qwen_boxes(
    config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int
) -> list[Box]:
    return [(0.0, 0.0, float(width), float(height))]


# LLaVA-NeXT and LLaVA-OneVision: the squeezed image, then tiles of the padded one without the padding.


def _onevision_video_tokens(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[ImageTokens]:
    """Pooled frames without tiles, then one newline token."""
    pixels = inputs["pixel_values_videos"]
    side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
    return [_frames(pixels.shape[1], side, side, others=1)] * len(pixels)


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


def _anyres_tokens(
    config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor
) -> list[ImageTokens]:
    if _class_tokens(config) != 0:
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


def _anyres_boxes(
    config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int
) -> list[Box]:
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


# InternVL: tiles of the squeezed image one after the other, then all of it as a thumbnail.


def _internvl_tokens(
    config: PreTrainedConfig, inputs: Mapping[str, Any], image_tokens: Tensor
) -> list[ImageTokens]:
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
        raise _disagreement(images, image_tokens)
    return images


def _runs(image_tokens: Tensor) -> list[int]:
    """Lengths of the runs of placeholders, prompt by prompt; text stands between two images."""
    padded = torch.nn.functional.pad(image_tokens.int(), (1, 1)).diff(dim=1).flatten()
    return ((padded == -1).nonzero() - (padded == 1).nonzero()).flatten().tolist()


def _internvl_boxes(
    config: PreTrainedConfig, processor: Any, image: ImageTokens, width: int, height: int
) -> list[Box]:
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


def _no_videos(config: PreTrainedConfig, inputs: Mapping[str, Any]) -> list[ImageTokens]:
    raise UnsupportedError(
        f"where the tokens of a video of {config.model_type} lie on its frames is not known; show its frames "
        "as images"
    )


def _class_tokens(config: PreTrainedConfig) -> int:
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


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class _Family(NamedTuple):
    """What one family does with images, the image processors of which it is known, and videos."""

    tokens: Callable[[PreTrainedConfig, Mapping[str, Any], Tensor], list[ImageTokens]]
    boxes: Callable[[PreTrainedConfig, Any, ImageTokens, int, int], list[Box]]
    processors: tuple[str, ...]
    videos: Callable[[PreTrainedConfig, Mapping[str, Any]], list[ImageTokens]] = _no_videos


_QWEN = _Family(_qwen_tokens, _qwen_boxes, ("Qwen2VLImageProcessor",), _qwen_video_tokens)
_FAMILIES = {
    "llava": _Family(_llava_tokens, _llava_boxes, ("CLIPImageProcessor", "SiglipImageProcessor")),
    "llava_next": _Family(_anyres_tokens, _anyres_boxes, ("LlavaNextImageProcessor",)),
    "llava_onevision": _Family(
        _anyres_tokens, _anyres_boxes, ("LlavaOnevisionImageProcessor",), _onevision_video_tokens
    ),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": _Family(_internvl_tokens, _internvl_boxes, ("GotOcr2ImageProcessor",)),
}


def _family(config: PreTrainedConfig) -> _Family:
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedError(
            f"where the image tokens of {config.model_type} lie on the image is not known; supported: "
            f"{', '.join(_FAMILIES)}"
        )
    return family
