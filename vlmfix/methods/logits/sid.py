"""SID: away from what the image tokens that matter least would make the model say (arXiv 2408.02032)."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import Branch, Selection
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast
from vlmfix.methods.logits.branch_prompts import unchanged
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.models.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class AgainstSelection(ScaledContrast, ABC):
    """Compares with a reading of the same prompts whose deeper layers see chosen tokens alone."""

    alpha: float = 0.5

    @abstractmethod
    def selection(self, context: DecodeContext) -> Selection:
        """What that reading sees."""

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self.contrasts or not context.layout.has_image:
            return ()
        selection = self.selection(context)
        return [unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused, selection=selection)]


@register_method("sid")
@dataclass(frozen=True, kw_only=True)
class SID(AgainstSelection):
    """Self-Introspective Decoding (arXiv 2408.02032): away from a reading of the prompt whose deeper layers
    see only the image tokens with the least attention.

    These are chosen anew at each token, by the attention of the newest token of that reading in the layer
    before, averaged over the heads. What was read before stays as it is. Scripts keep 100 (POPE), 50 (CHAIR)
    or 16 of 576 image tokens, and let the arg-max pass the cut; here the cut always acts.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        keep: how many image tokens are seen, as a number (int, 0 or more) or as a share (float, in [0, 1]) of
            those of each prompt; 100 of the 576 of LLaVA-1.5 by default.
        layer: the first layer that sees only these, 0-based, 1 or more.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    keep: float = 100 / 576
    layer: int = 2

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits under the least attended image tokens",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2408.02032",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 2), "keep": Between(0.05, 0.6)}

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = 1.0 if type(self.keep) is float else math.inf
        if type(self.keep) not in (int, float) or not 0 <= self.keep <= limit:
            raise ValueError(
                f"keep is {self.keep!r}; it must be a number of tokens (int, 0 or more) or a share of them "
                "(float, 0.0 to 1.0)"
            )
        if type(self.layer) is not int or self.layer < 1:
            raise ValueError(f"layer is {self.layer!r}; it must be a layer index, 1 or more")

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        check_layer(self.layer, config)
        return self

    def selection(self, context: DecodeContext) -> Selection:
        return least_attended_image(context, self.layer, self.keep)


def least_attended_image(context: DecodeContext, layer: int, keep: float) -> Selection:
    """From `layer` on, all of the text and the image tokens with the least attention.

    Args:
        keep: how many of these, as a number (int) or as a share (float) of those of each prompt.
    """
    images = context.layout.image_tokens.sum(dim=1)
    count = (
        torch.full_like(images, keep) if isinstance(keep, int) else (images.double() * keep).round().long()
    )
    return Selection(layer, functools.partial(_choose, context.layout, count))


def _choose(layout: PromptLayout, count: Tensor, weights: Tensor, visible: Tensor) -> Tensor:
    image = layout.over_keys(layout.image_tokens, weights.shape[-1]).to(weights.device)[:, None]
    return ~image | least_attended(weights, image, count.to(weights.device)[:, None])


def least_attended(weights: Tensor, tokens: Tensor, count: Tensor) -> Tensor:
    """The tokens with the smallest weights (arXiv 2408.02032); of equal ones, the first.

    Args:
        weights: `(..., keys)`.
        tokens: among which they are chosen, bool, to be broadcast to `weights`.
        count: how many, to be broadcast to `weights` without its last axis.

    Returns:
        Bool, of the shape of `weights`; all tokens where there are no more than `count`.
    """
    ranks = weights.masked_fill(~tokens, torch.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    return tokens & (ranks < count[..., None])


def check_layer(layer: int, config: PreTrainedConfig) -> None:
    """Refuse a layer that a model lacks.

    Raises:
        ValueError: naming the layer and the range.
    """
    last = config.get_text_config().num_hidden_layers - 1
    if layer > last:
        raise ValueError(f"layer is {layer}; the layers of this model go from 0 to {last}")
