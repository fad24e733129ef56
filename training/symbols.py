"""Image tokens as they should be: the words of category and colour, the region, the middle of an object."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from training.families import HIDDEN, Family
from training.sinks import SINK_DIMENSIONS, VISUAL_SINK
from training.world import CATEGORY_NAMES, COLOR_NAMES, corners, regions, sink_tokens
from vlmfix.evaluation.datasets.synthetic.scenes import Scene


class Symbols(nn.Module):
    """Embeds token labels with the decoder's own word embeddings; the projector learns to give the same."""

    names: Tensor
    colors: Tensor

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.register_buffer("names", _spelling(family, CATEGORY_NAMES), persistent=False)
        self.register_buffer("colors", _spelling(family, COLOR_NAMES), persistent=False)
        self.background = nn.Parameter(torch.randn(HIDDEN))
        self.region = nn.Parameter(0.5 * torch.randn(9, HIDDEN))
        self.middle = nn.Parameter(0.5 * torch.randn(HIDDEN))
        self.sink = nn.Parameter(torch.zeros(HIDDEN))
        with torch.no_grad():
            self.sink[list(SINK_DIMENSIONS)] = torch.tensor(VISUAL_SINK)

    def forward(self, labels: Tensor, words: Tensor) -> Tensor:
        """Embeddings `(batch, tokens, hidden)` of labels `(batch, rows, columns, 3)` by word embeddings."""
        rows, columns = labels.shape[1:3]
        region = self.region[torch.from_numpy(regions(rows, columns)).flatten()]
        category, color, middle = labels.long().flatten(1, 2).unbind(-1)
        thing = (self.names @ words)[(category - 1).clamp(min=0)] + (self.colors @ words)[color]
        thing = thing + middle[..., None] * self.middle
        empty = category == 0
        embeds = torch.where(empty[..., None], self.background, thing) + region
        return embeds + sink_tokens(labels).flatten(1)[..., None] * self.sink


def _spelling(family: Family, names: list[str]) -> Tensor:
    """Share of every token in the spelling of a name, `(names, vocabulary)`."""
    matrix = torch.zeros(len(names), len(family.tokenizer))
    for row, tokens in enumerate(
        family.tokenizer([f" {name}" for name in names], add_special_tokens=False).input_ids
    ):
        matrix[row, tokens] = 1.0 / len(tokens)
    return matrix


def blurred(labels: np.ndarray, scenes: list[Scene], rng: np.random.Generator) -> np.ndarray:
    """Labels as an imperfect eye sees them: faded objects often missed, single tokens sometimes."""
    seen = labels.copy()
    for image, scene in zip(seen, scenes, strict=True):
        for item in scene.objects:
            if item.opacity < 0.45 and rng.random() < 0.5:
                hidden = image[..., 0] == CATEGORY_NAMES.index(item.category) + 1
                hidden &= image[..., 1] == COLOR_NAMES.index(item.color)
                image[hidden] = 0
        image[rng.random(image.shape[:2]) < 0.05] = 0
    return seen


def shown_tokens(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """At most `count` image tokens of labels `(rows, columns, 3)`: objects, four corners, then others."""
    category = labels[..., 0].flatten()
    order = rng.permutation(category.size)
    corner = corners(*labels.shape[:2]).flatten()
    few_corners = order[corner[order] & (category[order] == 0)][:4]
    things, rest = order[category[order] > 0], order[~corner[order] & (category[order] == 0)]
    return np.sort(np.concatenate([things[: count - 4], few_corners, rest])[:count])
