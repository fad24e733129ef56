"""Control: smaller pictures, of which the vision encoder makes as few tokens as a pruning keeps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from transformers import ProcessorMixin

from vlmfix.engine.capabilities import ChangesPictures
from vlmfix.engine.shown_pictures import ShownPictures
from vlmfix.engine.stats import InactiveMethodWarning
from vlmfix.errors import UnsupportedError
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.baselines.decoding import OutsideMethod
from vlmfix.methods.pruning.uniform_grid import coarser_grid
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice, check_whole

_ANY_SIZE = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
_ONE_SIZE = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


@register_method("baseline.resize")
@dataclass(frozen=True, kw_only=True)
class BaselineResize(OutsideMethod, ChangesPictures):
    """Smaller pictures (arXiv 2510.07143): what a pruning must beat at as many tokens.

    Each picture is made so small that its tokens form a grid of about its shape with at most `kept_tokens`
    cells; a fair pair has the number that comes out, such as 182 for 192 of LLaVA-1.5's 576. Image processors
    of Qwen2-VL and its successors take the picture as it is; encoders of one size (CLIP, in LLaVA)
    interpolate their positions, and the picture is cropped as ever. Unlike a pruning, it also changes the
    positions that follow the image. Where the pictures themselves have no more tokens, they stay.

    Args:
        kept_tokens: image tokens of each picture at most, 1 or more; None leaves the model as it is.
        mode: "resize"; or "degrade", which makes the picture as small and large again: it has all its tokens,
            with no more to see, a control of quality and not of speed.
    """

    kept_tokens: int | None = 64
    mode: str = "resize"

    identity_parameters: ClassVar = {"kept_tokens": None}
    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="pictures: smaller, with fewer image tokens",
        where="before the model",
        forwards=1.0,
        provenance="paper",
        paper="2510.07143",
        families="LLaVA with a CLIP encoder, Qwen2-VL and what has its image processor",
    )

    def __post_init__(self) -> None:
        if self.kept_tokens is not None:
            check_whole("kept_tokens", self.kept_tokens, 1)
        check_choice("mode", self.mode, ("resize", "degrade"))

    @property
    def instead(self) -> str:
        return "give the processor smaller pictures, with a lower bound of its size"

    def pictures(self, images: Sequence[Image.Image], processor: ProcessorMixin) -> ShownPictures:
        own: Any = processor
        name = type(own.image_processor).__name__
        if not images:
            return ShownPictures((), ())
        if name in _ANY_SIZE:
            shown = self._of_any_size(images, own.image_processor)
        elif name in _ONE_SIZE:
            shown = self._of_one_size(images, own.image_processor, own.patch_size)
        else:
            raise self._unknown(name)
        if all(before is after for before, after in zip(images, shown.images, strict=True)):
            warnings.warn(
                f"BaselineResize left pictures as they are: they have no more than kept_tokens="
                f"{self.kept_tokens} image tokens; lower it",
                InactiveMethodWarning,
                stacklevel=2,
            )
        return shown

    @staticmethod
    def _unknown(name: str) -> UnsupportedError:
        return UnsupportedError(
            f"{name} is not known to make fewer tokens of smaller pictures; baseline.resize takes models "
            "with the image processor of CLIP (LLaVA-1.5) or of Qwen2-VL"
        )

    def _of_any_size(self, images: Sequence[Image.Image], image_processor: Any) -> ShownPictures:
        """For a processor that keeps the size of a picture within bounds."""
        assert self.kept_tokens is not None
        cell = image_processor.patch_size * image_processor.merge_size
        least, most = (image_processor.size[name] for name in ("shortest_edge", "longest_edge"))
        smart_resize = sys.modules[type(image_processor).__module__].smart_resize
        shown, tokens = [], []
        for image in images:
            pixels = smart_resize(image.height, image.width, cell, min_pixels=least, max_pixels=most)
            height, width = (side // cell for side in pixels)
            rows, columns = smaller_grid(height, width, self.kept_tokens)
            if self.mode == "degrade":
                shown.append(_degraded(image, rows * cell, columns * cell, image.size))
                tokens.append(height * width)
                continue
            # The lower bound falls for the whole batch, and must not change what stays as it is.
            raised = round(image.height / cell) * round(image.width / cell) * cell**2 < least
            stays = (rows, columns) == (height, width) and not raised
            shown.append(image if stays else _resized(image, rows * cell, columns * cell))
            tokens.append(rows * columns)
        if self.mode == "degrade":
            return ShownPictures(shown, tokens)
        return ShownPictures(shown, tokens, {"size": {"shortest_edge": cell * cell, "longest_edge": most}})

    def _of_one_size(self, images: Sequence[Image.Image], image_processor: Any, cell: int) -> ShownPictures:
        """For a processor that cuts the largest square out of a picture, for an encoder of one size."""
        assert self.kept_tokens is not None
        crop, size = image_processor.crop_size, image_processor.size
        side = crop["height"]
        if not image_processor.do_center_crop or side != crop["width"] or size["shortest_edge"] != side:
            raise UnsupportedError(
                f"{type(image_processor).__name__} does not cut the largest square out of a picture "
                f"(size {dict(size)}, crop_size {dict(crop)}), as that of LLaVA-1.5 does; use its settings"
            )
        whole = side // cell
        rows, columns = smaller_grid(whole, whole, self.kept_tokens)
        if (rows, columns) == (whole, whole):
            return ShownPictures(images, [whole * whole] * len(images))
        squares = [_largest_square(image) for image in images]
        if self.mode == "degrade":
            shown = [_degraded(square, rows * cell, columns * cell, (side, side)) for square in squares]
            return ShownPictures(shown, [whole * whole] * len(images))
        pixels = {"height": rows * cell, "width": columns * cell}
        return ShownPictures(
            [_resized(square, rows * cell, columns * cell) for square in squares],
            [rows * columns] * len(images),
            {"size": pixels, "crop_size": pixels},
            interpolates=True,
        )


def smaller_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """Rows and columns of the tokens of a smaller picture.

    Args:
        height: rows of tokens of the picture as it is.
        width: columns.
        count: tokens at most, 1 or more; the whole grid has no more cells: it stays.
    """
    return (height, width) if count >= height * width else coarser_grid(height, width, count)


def _resized(image: Image.Image, height: int, width: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)  # with antialiasing


def _degraded(image: Image.Image, height: int, width: int, size: tuple[int, int]) -> Image.Image:
    """A picture with the details of a smaller one, of a width and height."""
    if image.width <= width and image.height <= height:
        return image
    return _resized(image, height, width).resize(size, Image.Resampling.BICUBIC)


def _largest_square(image: Image.Image) -> Image.Image:
    """The square in the middle of a picture."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
