"""PAI: scores of image tokens raised by a share of their size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.methods.base import Card, check_range
from vlmfix.methods.columns import ScoreEdit
from vlmfix.runtime.run import Run


@dataclass(frozen=True, kw_only=True)
class PAI(ScoreEdit):
    """Pay Attention to Image (arXiv 2407.21771), the part that edits attention.

    In the last prompt row and in all new rows, each score of an image token grows by a share of its own size
    before the softmax: positive scores grow, negative ones shrink. Strong settings cost recall.

    Args:
        alpha: share of a score's size that is added to it, in [0, 100]; 0 leaves the model as it is.
    """

    alpha: float = 0.2

    card = Card(
        level="attention",
        changes="scores of image tokens, raised by a share of their size",
        where="last prompt row and new rows; layers 2 to the last",
        forwards=1.0,
        fidelity="released code",
        paper="2407.21771",
    )
    neutral: ClassVar = {"alpha": 0}
    published_layers: ClassVar = (2, 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)

    def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
        return self.alpha * image_tokens.float()

    def edit_scores(self, run: Run, layer: int, scores: Tensor) -> Tensor:
        return amplify(scores, self.columns(run, layer, scores)[0])


def amplify(scores: Tensor, factors: Tensor) -> Tensor:
    """Scores raised by a share of their own size (arXiv 2407.21771).

    Args:
        scores: before mask and softmax, `(batch, heads, rows, keys)`.
        factors: the share, 0 at keys that stay as they are; `(batch, 1, 1, keys)`.
    """
    return torch.addcmul(scores, scores.abs(), factors)
