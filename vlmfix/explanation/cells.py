"""Maps over image tokens as maps over the cells and pixels of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vlmfix.explanation.rollout import smooth
from vlmfix.methods.image.carve.crop import saliency_map
from vlmfix.models.image_grid.grids import Box, ImageTokens

# Cells on the longer side of the picture where it is seen in several blocks that overlap.
_SIDE = 32


@dataclass(frozen=True, eq=False)
class Cells:
    """Where the image tokens of one picture lie.

    Args:
        image: its tokens, with the boxes of their blocks.
        size: width and height of the picture in pixels.
    """

    image: ImageTokens
    size: tuple[int, int]

    @property
    def is_plain(self) -> bool:
        """Whether the cells are the image tokens, in one block."""
        return len(self.image.grids) == 1

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the cells in which maps are shown and pixels are taken away."""
        if self.is_plain:
            return self.image.grids[0].rows, self.image.grids[0].columns
        rows, columns = (max(1, round(_SIDE * side / max(self.size))) for side in reversed(self.size))
        return rows, columns

    @property
    def box(self) -> Box:
        """What the cells cover, in pixels of the picture; beyond its edges where the processor pads."""
        own = self.image.grids[0].box
        return (
            own if self.is_plain and own is not None else (0.0, 0.0, float(self.size[0]), float(self.size[1]))
        )

    def of_tokens(self, values: np.ndarray) -> np.ndarray:
        """Values of the image tokens, `(tokens,)`, as a map of the cells, `(rows, columns)`; 0 where no token
        sees the picture. Blocks that see the same area add up."""
        if self.is_plain:
            found: np.ndarray = values[self.image.grids[0].offsets().numpy()]
            return found
        pixels = np.nan_to_num(self.pixels(values))
        rows, columns = self.shape
        down = np.linspace(0, self.size[1], rows + 1).round().astype(int)[:-1]
        across = np.linspace(0, self.size[0], columns + 1).round().astype(int)[:-1]
        sums = np.add.reduceat(np.add.reduceat(pixels, down, axis=0), across, axis=1)
        areas = np.add.reduceat(np.add.reduceat(np.ones_like(pixels), down, axis=0), across, axis=1)
        mean: np.ndarray = sums / areas
        return mean

    def pixels(self, values: np.ndarray) -> np.ndarray:
        """Values of the image tokens as a map of the pixels, `(height, width)`, NaN where no token sees the
        picture."""
        return saliency_map(torch.from_numpy(np.ascontiguousarray(values)), self.image, self.size)

    def smoothed(self, values: np.ndarray) -> np.ndarray:
        """Values of the image tokens under the Gaussian of DecAF, block by block."""
        result = values.astype(np.float64)
        for grid in self.image.grids:
            places = grid.offsets().numpy()
            result[places] = smooth(values[places].astype(np.float64))
        return result

    def corners(self) -> np.ndarray:
        """Pixels of each cell inside the picture, `(rows * columns, 4)` int64 in raster order: left, top,
        right and bottom."""
        left, top, right, bottom = self.box
        rows, columns = self.shape
        across = np.linspace(left, right, columns + 1).round().clip(0, self.size[0]).astype(int)
        down = np.linspace(top, bottom, rows + 1).round().clip(0, self.size[1]).astype(int)
        return np.array(
            [
                (across[column], down[row], across[column + 1], down[row + 1])
                for row in range(rows)
                for column in range(columns)
            ]
        )
