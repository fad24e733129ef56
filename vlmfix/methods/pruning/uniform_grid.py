"""Image tokens on a uniform grid: the control that knows where tokens lie and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import CountedPruning, image_blocks, proportional_shares, select_each
from vlmfix.methods.registry import register_method
from vlmfix.models.image_grid.grids import ImageTokens


@register_method("uniform_grid")
@dataclass(frozen=True, kw_only=True)
class UniformGrid(CountedPruning):
    """Image tokens on a uniform grid stay: a control, as in arXiv 2504.17892.

    Acts on the image features before the language model. Several images of a prompt, the blocks of an
    image in tiles and the frames of a video share the budget in proportion to their tokens; newline tokens
    leave.

    Args:
        kept_tokens: image tokens that stay, 1 or more; prompts with no more of them keep them all. None
            leaves the model as it is.
    """

    info = MethodInfo(
        stage="pruning",
        changes="all but evenly spaced image tokens leave",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="paper",
        paper="2504.17892",
    )

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None

        def select(sample: int, tokens: Tensor) -> Tensor:
            assert self.kept_tokens is not None
            if self.kept_tokens >= len(tokens):
                return torch.ones_like(tokens[:, 0], dtype=torch.bool)
            return torch.tensor(spread(context.images[sample], self.kept_tokens), device=tokens.device)

        return select_each(context.layout, hidden_states, select)


def spread(images: Sequence[ImageTokens], count: int) -> list[int]:
    """Evenly spaced tokens of the images of a prompt.

    Args:
        images: what blocks their tokens form.
        count: how many to choose; all tokens of the blocks if there are fewer.

    Returns:
        Offsets among the image tokens of the prompt, ascending.
    """
    blocks = image_blocks(images)
    shares = proportional_shares([block.numel() for block in blocks], count)
    chosen: list[int] = []
    for block, share in zip(blocks, shares, strict=True):
        if share > 0:
            chosen += block.flatten()[grid_cells(block.shape[0], block.shape[1], share)].tolist()
    return chosen


def coarser_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """Rows and columns of a grid of about the same shape with at most `count` cells, 1 or more."""
    rows = min(max(math.floor(math.sqrt(count * height / width) + 0.5), 1), height)
    columns = max(min(width, count // rows), 1)
    return min(rows, count // columns, height), columns


def grid_cells(height: int, width: int, count: int) -> list[int]:
    """Cells spread evenly over a grid: a coarser grid of about its shape, and evenly spaced others.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        count: how many cells, from 1 to `height * width`.

    Returns:
        Indices in raster order, ascending.
    """
    rows, columns = coarser_grid(height, width, count)
    cells = {
        int((row + 0.5) * height / rows) * width + int((column + 0.5) * width / columns)
        for row in range(rows)
        for column in range(columns)
    }
    others = [cell for cell in range(height * width) if cell not in cells]
    missing = count - rows * columns
    cells.update(others[int((pick + 0.5) * len(others) / missing)] for pick in range(missing))
    return sorted(cells)
