"""VISTA: feed-forward parts, turned towards what the image changes in the last prompt token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ReadsAhead
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.static_edits import Edit
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import fitted_layers, layer_range
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.branch_prompts import unchanged, without_image
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.steering.base import StreamFormula, angle, steer, unit
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile

# Share of a state that float32 may lose.
_ROUNDING = 1e-5


@register_method("vista")
@dataclass(frozen=True, kw_only=True)
class VISTA(StreamFormula, ReadsAhead):
    """Visual information Steering (arXiv 2502.03628), the steering vector; the other half of the paper is
    `sla`, and "vista+sla" is both.

    Before the prefill the prompt is read with its images and without them; what they change in the last
    token, layer by layer, is the direction. What feed-forward parts add is turned towards it with its length
    kept, at all tokens, more where it points away. Released code adds a principal component of this single
    difference, which is an arbitrary vector, and is left out here. Several steering methods turn one after
    the other.

    Args:
        strength: in [0, 10]; 0 leaves the model as it is. Scripts use 0.17 for captions, 0.01 for yes/no.
        layers: first edited layer and the one after the last, 0-based; None: all.
    """

    strength: float = 0.1
    layers: tuple[int, int] | None = None

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what feed-forward parts add, turned towards what the image changes",
        where="all rows, all layers; the prompt is read twice more",
        forwards=1.0,
        provenance="released code",
        paper="2502.03628",
    )
    identity_parameters: ClassVar = {"strength": 0}
    stream_sites: ClassVar = ("feed_forward",)
    search_space: ClassVar = {"strength": Between(0.01, 0.6)}

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0, 10)
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        return dataclasses.replace(self, layers=fitted_layers(self.layers, (0, 32), config))

    def edits_layer(self, layer: int) -> bool:
        assert self.layers is not None
        return self.layers[0] <= layer < self.layers[1]

    def read_ahead(
        self,
        context: DecodeContext,
        inputs_embeds: Tensor,
        decoder_inputs: Mapping[str, Any],
        read: Callable[[Branch], list[Tensor]],
    ) -> None:
        if not context.layout.has_image:
            return
        shown = read(unchanged(context, inputs_embeds, decoder_inputs, fused=False))
        hidden = read(without_image(context, self, inputs_embeds, decoder_inputs, fused=False))
        for layer, (own, other) in enumerate(zip(shown, hidden, strict=True)):
            context.state[self, layer] = difference(own.float(), other.float())

    def formula(self, context: DecodeContext, layer: int, device: torch.device) -> Edit:
        vector = context.state[self, layer].to(device)[:, None]
        return Edit(_steered, (vector,), {"strength": self.strength})

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "degrees by which what is added turns"}


def difference(shown: Tensor, hidden: Tensor) -> Tensor:
    """What the image changes in states `(..., hidden)`; 0 where that is no more than rounding, of which a
    direction of length 1 would make much (layers with a state may not have seen the image yet)."""
    vector = shown - hidden
    seen = vector.norm(dim=-1, keepdim=True) > _ROUNDING * shown.norm(dim=-1, keepdim=True)
    return vector.masked_fill(~seen, 0.0)


def _steered(states: Tensor, vector: Tensor, *, strength: float) -> tuple[Tensor, tuple[Tensor]]:
    """States that VISTA has steered, and degrees by which the newest turned."""
    after = steer(states, steering_shift(states, vector, strength=strength))
    return after, (angle(states[:, -1:], after[:, -1:]),)


def steering_shift(states: Tensor, vector: Tensor, *, strength: float) -> Tensor:
    """What VISTA adds to states of length 1 (arXiv 2502.03628).

    Args:
        states: `(..., hidden)`.
        vector: to be broadcast to `states`.
        strength: of it, more where states point away.

    Returns:
        Float32, of the shape of `states`.
    """
    away = (-unit(states) * unit(vector)).sum(dim=-1, keepdim=True)
    return strength * (1 + away.clamp_min(0)) * unit(vector)
