"""Devils in the Middle Layers: scores of image tokens raised by what the heads find there together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.methods.attention.base import ScoreEdit
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("devils")
@dataclass(frozen=True, kw_only=True)
class Devils(ScoreEdit):
    """Devils in the Middle Layers (arXiv 2411.16724).

    In the last prompt row and in all new rows, the scores of an image token grow in all heads of a layer by
    the same amount before the softmax: a share of the mean size that its scores have over the heads.

    Args:
        alpha: share of that mean, in [0, 100]; 0 leaves the model as it is.
    """

    alpha: float = 0.5

    info = MethodInfo(
        stage="attention",
        changes="scores of image tokens, raised in all heads by their mean size",
        where="last prompt row and new rows; layers 5 to 18 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2411.16724",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    search_space: ClassVar = {"alpha": Between(0.1, 1)}
    published_layers: ClassVar = (5, 19)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)

    def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
        return self.alpha * image_tokens.float()

    @property
    def formula(self) -> Callable[[Tensor, Tensor], Tensor]:
        return lift_together


def lift_together(scores: Tensor, factors: Tensor) -> Tensor:
    """Scores raised in all heads by a share of their mean size over the heads (arXiv 2411.16724).

    Args:
        scores: before mask and softmax, `(batch, heads, rows, keys)`.
        factors: the share, 0 at keys that stay as they are; `(batch, 1, 1, keys)`.
    """
    return torch.addcmul(scores, scores.abs().mean(dim=1, keepdim=True), factors)
