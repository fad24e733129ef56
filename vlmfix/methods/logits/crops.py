"""CRoPS: away from the text alone, then away from an image that is hardly seen."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch, Selection
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import Contrastive, contrast, plausible
from vlmfix.methods.logits.branch_prompts import unchanged, without_image
from vlmfix.methods.logits.sid import check_layer, least_attended, least_attended_image
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile

# The first layer in which the branches see chosen tokens alone, and the share of the image that is chosen.
_LAYER = 2
_KEPT_IMAGE = 0.25


@register_method("crops")
@dataclass(frozen=True, kw_only=True)
class CRoPS(Contrastive):
    """CRoPS (TMLR 2026): away from a reading without the image, by a weight that grows with the answer, and
    away from one with a part of it.

    Code: github.com/ubamba98/
    CRoPS-A-Training-Free-Hallucination-Mitigation-Framework-for-Vision-Language-Models

    From layer 2 on, the first sees only a few tokens with the least attention, 10 to 40 as the answer grows,
    and the second, as in SID, only the quarter of the image tokens with the least. Where a token is sure
    enough, only the cut acts. Constants of the released code differ; these are the ones that it runs with.
    With `decay`, a prompt that holds nothing but an image is left as it is.

    Args:
        decay: growth of the weight of the first, `exp(decay * tokens) - 1`, in [0, 1]; 0 leaves it out.
        alpha: weight of the second, in [0, 100]; 0 leaves it out.
        confidence: the contrast acts where no token has more than this probability after the cut, in [0, 1].
        beta: plausibility cut, see `LogitsMixer`; here it comes first.
        fused: see `Contrastive`.
    """

    decay: float = 0.01
    alpha: float = 1.0
    confidence: float = 0.95

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits without the image and with the least attended quarter of it",
        where="every step",
        forwards=3.0,
        provenance="released code",
        paper="github.com/ubamba98/CRoPS-A-Training-Free-Hallucination-Mitigation-Framework-for-Vision-"
        "Language-Models",
    )
    identity_parameters: ClassVar = {"decay": 0, "alpha": 0, "beta": 0}
    search_space: ClassVar = {"alpha": Between(0.25, 2), "decay": Between(0.005, 0.1, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("decay", self.decay, 0, 1)
        check_range("alpha", self.alpha, 0, 100)
        check_range("confidence", self.confidence, 0, 1)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        check_layer(_LAYER, config)
        return self

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not context.layout.has_image:
            return ()
        branches = []
        if self.decay > 0:
            text = without_image(context, self, inputs_embeds, decoder_inputs, fused=self.fused)
            text.selection = Selection(_LAYER, functools.partial(_choose, text.layout.length))
            branches.append(text)
        if self.alpha > 0:
            image = least_attended_image(context, _LAYER, _KEPT_IMAGE)
            branches.append(
                unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused, selection=image)
            )
        return branches

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        left = list(branches)
        return contrast_twice(
            logits,
            left.pop(0) if left and self.decay > 0 else None,
            left.pop(0) if left else None,
            weight=math.expm1(self.decay * (context.step + 1)),
            alpha=self.alpha,
            confidence=self.confidence,
            beta=self.beta,
        )


def contrast_twice(
    logits: Tensor,
    text: Tensor | None,
    image: Tensor | None,
    *,
    weight: float,
    alpha: float,
    confidence: float,
    beta: float,
) -> Tensor:
    """Log-probabilities of the plausible tokens, moved away from those of two branches.

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        text: of the branch without image; None: none.
        image: of the branch with a part of it; None: none.
        weight: of the first contrast.
        alpha: of the second.
        confidence: rows with a token above this probability, among plausible ones, are not moved.
        beta: plausibility cut, in [0, 1].

    Returns:
        `(batch, vocabulary)`, minus infinity at tokens that are not plausible.
    """
    cut = logits.masked_fill(~plausible(logits, beta), -torch.inf).log_softmax(dim=-1)
    moved = cut
    for branch, strength in ((text, weight), (image, alpha)):
        if branch is not None:
            moved = contrast(moved, branch.log_softmax(dim=-1), strength)
    sure = cut.amax(dim=-1, keepdim=True).exp() > confidence
    return torch.where(sure, cut, moved)


def kept_text_tokens(generated: Tensor) -> Tensor:
    """How many tokens the branch without image sees when the answer has so many tokens, int64."""
    return (10 + 30 * -torch.expm1(-0.001 * (generated.double() + 1))).floor().long()


def _choose(prompt: int, weights: Tensor, visible: Tensor) -> Tensor:
    newest, keys = weights.shape[-2:]
    generated = torch.arange(keys - prompt - newest + 1, keys - prompt + 1, device=weights.device)
    return least_attended(weights, visible, kept_text_tokens(generated))
