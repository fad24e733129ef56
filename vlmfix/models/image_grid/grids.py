"""Grids of image tokens, and how prompts show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

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


class Counted(Protocol):
    """What stands for a number of tokens of a prompt."""

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


def disagreement(images: Sequence[ImageTokens], image_tokens: Tensor) -> UnsupportedError:
    return UnsupportedError(
        f"the images make {[image.count for image in images]} tokens, but the prompts hold "
        f"{image_tokens.sum(dim=1).tolist()} placeholders; pass the inputs of one processor call"
    )


def frames_of(count: int, rows: int, columns: int, *, others: int = 0) -> ImageTokens:
    """A video of `count` frames, with other tokens after them."""
    size = rows * columns
    grids = tuple(TokenGrid.plain(frame * size, rows, columns) for frame in range(count))
    return ImageTokens(grids, count * size + others)
