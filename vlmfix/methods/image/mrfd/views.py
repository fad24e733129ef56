"""Views of a picture: windows where its map is high, and what was found out by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vlmfix.methods.image.carve.crop import heat_map
from vlmfix.methods.multi_pass import MultiPassResult
from vlmfix.models.image_grid.grids import Box, ImageTokens, TokenGrid

PixelBox = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""

# Qwen-VL reads no image whose sides differ more.
_MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """One view of the picture, and what it says.

    Args:
        box: what it shows of the picture, in pixels.
        image: itself.
        response: what the model answered about it alone, greedily.
        divergence: mean Jensen-Shannon divergence of its answer to those of the others, in nats.
        weight: in the fusion; the weights of all views sum to 1.
    """

    box: PixelBox
    image: Image.Image = field(repr=False)
    response: str
    divergence: float
    weight: float


@dataclass(frozen=True, eq=False, kw_only=True)
class FusedAnswer(MultiPassResult):
    """What MRFD found out about one prompt.

    Args:
        answer: to the prompt, from all views; plain decoding's where `fused` is False.
        original: the picture that was cut into views; None without one.
        saliency: attention by cells of its token grid, `(rows, columns)` float64; None if it was not looked
            at.
        views: the whole picture first, then the windows in the order in which they were taken.
        fused: whether the answer is from the views.
        reason: why it is not; "" if it is.
    """

    original: Image.Image | None = field(default=None, repr=False)
    saliency: np.ndarray | None = field(default=None, repr=False)
    views: tuple[View, ...] = ()
    fused: bool = False

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write `<stem>-map.png`, the map over the picture with the windows, and `<stem>-view-N.png`, each
        window.

        Returns:
            The files; none where the picture was not cut into views.
        """
        if self.original is None or self.saliency is None:
            return []
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{stem}-map.png"]
        cells = Image.fromarray(self.saliency.astype(np.float32))
        heat = np.asarray(cells.resize(self.original.size, Image.Resampling.BILINEAR), dtype=float)
        heat_map(self.original, heat, *(view.box for view in self.views[1:])).save(written[0])
        for number, view in enumerate(self.views[1:], 1):
            written.append(folder / f"{stem}-view-{number}.png")
            view.image.save(written[-1])
        return written


def widest(image: ImageTokens) -> TokenGrid:
    """Of the blocks of an image, the one that covers most of it; of equal ones, the first."""

    def area(grid: TokenGrid) -> float:
        assert grid.box is not None
        left, top, right, bottom = grid.box
        return (right - left) * (bottom - top)

    return max(image.grids, key=area)


def cells(values: Tensor, grid: TokenGrid, size: tuple[int, int]) -> np.ndarray:
    """Values of the tokens of an image on the cells of a block, 0 where the centre lies beyond the image.

    Args:
        values: `(tokens,)`.
        grid: placed on the image.
        size: width and height of the image in pixels.

    Returns:
        `(rows, columns)` float64.
    """
    assert grid.box is not None
    left, top, right, bottom = grid.box
    across = left + (np.arange(grid.columns) + 0.5) * (right - left) / grid.columns
    down = top + (np.arange(grid.rows) + 0.5) * (bottom - top) / grid.rows
    inside = ((down > 0) & (down < size[1]))[:, None] & ((across > 0) & (across < size[0]))
    shown: np.ndarray = np.where(inside, values[grid.offsets()].double().numpy(), 0.0)
    return shown


def windows(
    saliency: np.ndarray, *, count: int, window_fraction: float, max_window_iou: float
) -> list[tuple[int, int]]:
    """Corners of the square windows with the most saliency that overlap little.

    All windows, at steps of one cell, rank by their sums; of equal ones, the top one, then the left one goes
    first. They are taken in this order where they overlap none of those taken by more than `max_window_iou`.

    Args:
        saliency: `(rows, columns)`.
        count: how many at most.
        window_fraction: side of a window as a share of the shorter side of the grid.
        max_window_iou: intersection over union that two windows may have.

    Returns:
        Row and column of the first cell of each; none where a window would be the whole grid.
    """
    side = window_side(saliency.shape, window_fraction)
    if saliency.shape == (side, side):
        return []
    sums = np.lib.stride_tricks.sliding_window_view(saliency, (side, side)).sum(axis=(2, 3))
    taken: list[tuple[int, int]] = []
    for place in np.argsort(-sums, axis=None, kind="stable"):
        if len(taken) == count:
            break
        row, column = divmod(int(place), sums.shape[1])
        if all(_overlap(row - top, column - left, side) <= max_window_iou for top, left in taken):
            taken.append((row, column))
    return taken


def window_side(shape: Sequence[int], window_fraction: float) -> int:
    """Side of a window in cells, at least 1."""
    return max(1, round(window_fraction * min(shape)))


def _overlap(down: int, across: int, side: int) -> float:
    """Intersection over union of two windows that lie so many cells apart."""
    shared = max(0, side - abs(down)) * max(0, side - abs(across))
    return shared / (2 * side * side - shared)


def pixel_box(corner: tuple[int, int], side: int, grid: TokenGrid, size: tuple[int, int]) -> PixelBox | None:
    """Pixels of the image that a window shows, cells at its edges whole.

    Args:
        corner: row and column of its first cell.
        side: in cells.
        grid: placed on the image.
        size: width and height of the image in pixels.

    Returns:
        Its box on the image; None: it shows nothing of the image, or a strip that processors refuse.
    """
    assert grid.box is not None
    row, column = corner
    left, right = _span(grid.box, 0, column, side, grid.columns, size[0])
    top, bottom = _span(grid.box, 1, row, side, grid.rows, size[1])
    shorter, longer = sorted((right - left, bottom - top))
    return None if shorter < 1 or longer > _MAX_ASPECT_RATIO * shorter else (left, top, right, bottom)


def _span(box: Box, axis: int, first: int, side: int, cells: int, pixels: int) -> tuple[int, int]:
    """First pixel of some cells on an axis, and the one after the last, within the image."""
    start, step = box[axis], (box[axis + 2] - box[axis]) / cells
    low = np.floor(start + first * step + 1e-6)
    high = np.ceil(start + (first + side) * step - 1e-6)
    return int(np.clip(low, 0, pixels)), int(np.clip(high, 0, pixels))
