"""AD-HH: heads that hallucinate, cut off from the text whenever they look at little else."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import KeyEdit, check_heads, head_pairs
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile


@register_method("adhh")
@dataclass(frozen=True, kw_only=True)
class ADHH(KeyEdit, ActsInStaticSteps):
    """Adaptive deactivation of hallucination heads (github.com/TianyunYoung/Hallucination-Attribution).

    In the last prompt row and in all new rows, a listed head that puts much of its attention on the text
    after the last image, the question and the answer so far, loses that attention; the rest is not scaled
    up, so that the head says less. A long question can set it off at the first token.

    Args:
        threshold: attention to that text from which on a head loses it, 0 or more; above 1 leaves the model
            as it is.
        heads: pairs of layer and head, 0-based; an empty list leaves the model as it is; None: from the
            checkpoint's profile.
    """

    threshold: float = 0.4
    heads: tuple[tuple[int, int], ...] | None = None

    info = MethodInfo(
        stage="attention",
        changes="weights of listed heads: none on the text after the image",
        where="last prompt row and new rows; heads of the profile",
        forwards=1.0,
        provenance="released code",
        paper="github.com/TianyunYoung/Hallucination-Attribution",
    )
    identity_parameters: ClassVar = {"heads": ()}
    search_space: ClassVar = {"threshold": Between(0.1, 0.6)}

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, 0, math.inf)
        if self.heads is not None:
            object.__setattr__(self, "heads", head_pairs(self.heads))

    @property
    def is_identity(self) -> bool:
        return self.heads == () or self.threshold > 1

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        heads = self.heads
        if heads is None and profile is not None:
            heads = profile.get("adhh_heads")
        if heads is None:
            raise ValueError(
                "no hallucination heads are known for this checkpoint, they are published for LLaVA-1.5-7B, "
                "LLaVA-1.5-13B and LLaVA-1.6-34B; find them with 'vlmfix calibrate --model MODEL --method "
                "adhh --images FOLDER', or pass heads=((layer, head), ...)"
            )
        heads = head_pairs(heads)
        check_heads(heads, config)
        return dataclasses.replace(self, heads=heads)

    def begin(self, context: DecodeContext) -> None:
        layers = [layer for layer in range(context.num_layers) if self.edits_layer(layer)]
        context.check_attention(type(self).__name__, layers, all_of_them=True)

    def edits_layer(self, layer: int) -> bool:
        return bool(self._heads_of(layer))

    def edit_sites(self, layer: int, heads: int) -> int:
        return len(self._heads_of(layer))

    def key_values(self, context: DecodeContext, layout: PromptLayout, keys: int) -> tuple[Tensor, ...]:
        with_image = context.layout.image_tokens.any(dim=1)
        return (layout.over_keys(layout.after_last_image, keys, generated=with_image),)

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        key = (self, layer, weights.device)
        if key not in context.state:
            context.state[key] = torch.tensor([self._heads_of(layer)], device=weights.device)
        heads: Tensor = context.state[key][0]  # the same in all sequences
        (text,) = self.columns(context, layer, weights)
        edited, (mass,) = _with_deactivated(weights, text, heads, threshold=self.threshold)
        if context.has_newest_row:
            context.measure(self, size=mass)
        return edited

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        columns = self.static_columns(context, layer, keys)
        if columns is None:
            return None
        heads = torch.tensor(self._heads_of(layer), device=columns[0].device)
        edit = Edit(_with_deactivated, (*columns, heads), {"threshold": self.threshold})
        return StaticEdits(weights=edit, sites=len(heads), sizes=("size",))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "attention of the listed heads to the text after the image"}

    def inactive_reason(self, context: DecodeContext) -> str:
        return (
            f"no listed head puts {self.threshold:g} of its attention on the text after the image; lower "
            "threshold"
        )

    def _heads_of(self, layer: int) -> list[int]:
        assert self.heads is not None
        return [head for each, head in self.heads if each == layer]


def deactivate(weights: Tensor, text_tokens: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Take from heads their attention to the text after the image where it is large (AD-HH, ICLR 2025).

    Args:
        weights: after the softmax, of the heads in question, `(batch, heads, rows, keys)`.
        text_tokens: after the last image, generated ones included, `(batch, 1, 1, keys)` bool.
        threshold: attention to the text from which on it is taken.

    Returns:
        The weights, whose rows then sum to 1 less what was taken, and the attention to the text that there
        was, `(batch, heads, rows, 1)`.
    """
    mass = (weights * text_tokens).sum(dim=-1, keepdim=True)
    return weights.masked_fill((mass >= threshold) & text_tokens, 0.0), mass


def _with_deactivated(
    weights: Tensor, text_tokens: Tensor, heads: Tensor, *, threshold: float
) -> tuple[Tensor, tuple[Tensor]]:
    """`deactivate` in some heads, `(heads,)` int64; and their attention to the text in the newest row."""
    edited, mass = deactivate(weights[:, heads], text_tokens, threshold=threshold)
    return weights.index_copy(1, heads, edited), (mass[:, :, -1, 0],)
