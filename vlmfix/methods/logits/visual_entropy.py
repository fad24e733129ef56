"""Visual entropy: tokens that no image token stands out for are lowered (arXiv 2603.27201)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.capabilities import ReadsFinalStates
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import LogitsMixer
from vlmfix.methods.logits.image_states import gathered, position_entropy
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range

ONE_TOKEN = "fewer than two image tokens"


@register_method("visual_entropy")
@dataclass(frozen=True, kw_only=True)
class VisualEntropy(LogitsMixer, ReadsFinalStates):
    """Visual-entropy decoding, made for models that think aloud ("Understanding and Mitigating Hallucinations
    in Multimodal Chain-of-Thought Models", arXiv 2603.27201).

    What the output head makes of the image tokens says for each token of the vocabulary how evenly its score
    is spread over them, once, when the prompt is read: 1 where none stands out. Where the token that is about
    to be written is flat, all logits are lowered in proportion to flatness. It acts on reasoning and answer
    alike, and on models that do not reason, too; `act_on` limits it. Both values are published for models
    built on Qwen2.5-VL; on others, look at the share of steps in which it acts.

    Frames of videos do not count as image tokens. A prompt with fewer than two image tokens is left as it is.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        gamma: flatness above which it acts, in [0, 1]; None: in every step.
        beta: plausibility cut, see `LogitsMixer`; none in the paper.
    """

    alpha: float = 0.75
    gamma: float | None = 0.5
    beta: float = 0.0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="logits of tokens whose score is even over the image tokens, lowered",
        where="steps whose likeliest token is such a one",
        forwards=1.0,
        provenance="released code",
        paper="2603.27201",
    )
    identity_parameters: ClassVar = {"alpha": 0, "beta": 0}
    search_space: ClassVar = {"alpha": Between(0.2, 5, log=True), "gamma": Between(0, 0.9)}
    keeps_prefix: ClassVar = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)
        if self.gamma is not None:
            check_range("gamma", self.gamma, 0, 1)

    def see_final_states(self, context: DecodeContext, hidden_states: Tensor) -> None:
        if self.alpha == 0 or not context.layout.has_image:
            return
        assert context.modules is not None
        layout = context.layout_at(context.num_layers - 1)
        image = layout.image_tokens
        if context.video_tokens is not None:
            image = image & ~layout.gather(context.video_tokens)
        few = image.sum(dim=1) < 2
        context.decline(self, ONE_TOKEN, few & context.layout.image_tokens.any(dim=1))
        if not bool(few.all()):
            head = context.modules.output_logits
            context.state[self] = position_entropy(head, *gathered(hidden_states, image))

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        flatness = context.state.get(self)
        if flatness is None:
            return logits
        lowered, acts = lower(logits, flatness.to(logits.device), alpha=self.alpha, gamma=self.gamma)
        context.measure(self, size=acts.float())
        return lowered

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the steps in which it acts"}

    def inactive_reason(self, context: DecodeContext) -> str:
        if self.gamma is None or self.alpha == 0:
            return super().inactive_reason(context)
        return (
            f"no token about to be written was flatter than gamma={self.gamma:g}, or alpha={self.alpha:g} is "
            "too small to tell; lower gamma or raise alpha"
        )


def lower(logits: Tensor, flatness: Tensor, *, alpha: float, gamma: float | None) -> tuple[Tensor, Tensor]:
    """Logits lowered by flatness where the likeliest token is flat (arXiv 2603.27201).

    Args:
        logits: `(batch, vocabulary)`; infinite ones stay.
        flatness: of each token, in the same form, in [0, 1].
        alpha: strength.
        gamma: flatness above which a row is edited; None: all are.

    Returns:
        `(batch, vocabulary)`, and which rows were edited, `(batch, 1)` bool.
    """
    chosen = flatness.gather(1, logits.argmax(dim=-1, keepdim=True))
    acts = torch.ones_like(chosen, dtype=torch.bool) if gamma is None else chosen > gamma
    return torch.where(acts, logits - alpha * flatness, logits), acts
