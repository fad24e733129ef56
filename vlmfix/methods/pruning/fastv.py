"""FastV: image tokens to which the last prompt token pays little attention leave after the first layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import TokenPruning, keep_top
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile


@register_method("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(TokenPruning):
    """FastV (arXiv 2403.06764): drop the image tokens that the last prompt token looks at least.

    They are chosen once, in the prefill, so that what is dropped needs no cache. Both forms of the released
    code choose anew in every step, by the newest token: the one that drops tokens in place, which reads the
    whole sequence each time, and the one with a cache, which it calls unfinished. The first token is the
    same; later ones may differ.

    Args:
        start_layer: first layer that sees the kept tokens alone, 0-based, at least 1; scores come from the
            attention of the layer before.
        prune_ratio: share of the image tokens that leaves, in [0, 1]; 0 leaves the model as it is.
    """

    start_layer: int = 2
    prune_ratio: float = 0.5

    info = MethodInfo(
        stage="pruning",
        changes="image tokens with little attention from the last one leave",
        where="prefill, before layer 2",
        forwards=1.0,
        provenance="released code",
        paper="2403.06764",
    )
    identity_parameters: ClassVar = {"prune_ratio": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("prune_ratio", self.prune_ratio, 0, 1)
        if type(self.start_layer) is not int or self.start_layer < 1:
            raise ValueError(f"start_layer is {self.start_layer!r}; it must be a layer index, 1 or more")

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        layers = config.get_text_config().num_hidden_layers
        if self.start_layer >= layers:
            raise ValueError(
                f"start_layer is {self.start_layer}; the layers of this model go from 0 to {layers - 1}, and "
                "the first one cannot be pruned"
            )
        return super().resolve(config, profile)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        acts = context.is_prefill and layer == self.start_layer - 1 and context.layout.has_image
        return context.layout.last_row if acts else None

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        context.state[self, "scores"] = last_row_scores(weights)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != self.start_layer:
            return None
        scores: Tensor = context.state[self, "scores"]
        image_tokens = context.layout.image_tokens.to(scores.device)
        return keep_top(scores, image_tokens, kept_counts(image_tokens, self.prune_ratio))


def last_row_scores(weights: Tensor) -> Tensor:
    """Attention of the last row to every key, averaged over the heads (arXiv 2403.06764, released code).

    The text of the paper averages over all rows; its code takes the last one.

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.

    Returns:
        `(batch, keys)`.
    """
    return weights[:, :, -1].mean(dim=1)


def kept_counts(image_tokens: Tensor, prune_ratio: float) -> Tensor:
    """Image tokens of each sample that stay: the share that is not pruned, rounded to the nearest.

    Args:
        image_tokens: `(batch, tokens)` bool.
        prune_ratio: in [0, 1].

    Returns:
        `(batch,)` int64.
    """
    return torch.round(image_tokens.sum(dim=1).double() * (1 - prune_ratio)).long()
