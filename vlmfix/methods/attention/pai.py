"""PAI: scores of image tokens raised by a share of their size, and away from what the text alone says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.methods.attention.base import ScoreEdit
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import AgainstText, contrast
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("pai")
@dataclass(frozen=True, kw_only=True)
class PAI(ScoreEdit, AgainstText):
    """Pay Attention to Image (arXiv 2407.21771).

    In the last prompt row and in all new rows, each score of an image token grows by a share of its own size
    before the softmax: positive scores grow, negative ones shrink. Strong settings cost recall. By default
    that is all. With `gamma`, logits also move away from those of the prompt without its image, whose
    attention is not edited; the README of the released code has 1.1 there, its program 2. Then a prompt that
    holds nothing but an image is left as it is.

    Args:
        alpha: share of a score's size that is added to it, in [0, 100]; 0 edits no score.
        gamma: how far logits go from those without the image to those with it, in [1, 100]; 1 leaves them.
        beta: plausibility cut, see `LogitsMixer`; unless `gamma` is 1.
        fused: see `Contrastive`.
    """

    alpha: float = 0.2
    gamma: float = 1.0

    info = MethodInfo(
        stage="attention",
        changes="scores of image tokens, raised by a share of their size; on request, logits",
        where="last prompt row and new rows; layers 2 to the last",
        forwards=1.0,
        provenance="released code",
        paper="2407.21771",
    )
    identity_parameters: ClassVar = {"alpha": 0, "gamma": 1}
    search_space: ClassVar = {"alpha": Between(0.05, 1, log=True)}
    published_layers: ClassVar = (2, 32)

    def __post_init__(self) -> None:
        ScoreEdit.__post_init__(self)
        AgainstText.__post_init__(self)
        check_range("alpha", self.alpha, 0, 100)
        check_range("gamma", self.gamma, 1, 100)

    @property
    def owns_logits(self) -> bool:
        return self.gamma != 1

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return super().rows(context, layer) if self.alpha > 0 else None

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return self.alpha > 0 and super().reads_last_row_again(context)

    def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
        return self.alpha * image_tokens.float()

    @property
    def formula(self) -> Callable[[Tensor, Tensor], Tensor]:
        return amplify

    @property
    def contrasts(self) -> bool:
        return self.gamma != 1

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return guide(logits, branches[0], self.gamma)


def guide(logits: Tensor, branch: Tensor, gamma: float) -> Tensor:
    """`lp1 + gamma * (lp - lp1)` of the log-probabilities (arXiv 2407.21771).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the prompts without image.
        gamma: 1 leaves the first.
    """
    return contrast(logits.log_softmax(dim=-1), branch.log_softmax(dim=-1), gamma - 1)


def amplify(scores: Tensor, factors: Tensor) -> Tensor:
    """Scores raised by a share of their own size (arXiv 2407.21771).

    Args:
        scores: before mask and softmax, `(batch, heads, rows, keys)`.
        factors: the share, 0 at keys that stay as they are; `(batch, 1, 1, keys)`.
    """
    return torch.addcmul(scores, scores.abs(), factors)
