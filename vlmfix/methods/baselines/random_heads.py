"""Random heads: the control that any choice of heads must beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.attention.act import ACT
from vlmfix.methods.attention.adhh import ADHH
from vlmfix.methods.attention.var import VAR
from vlmfix.methods.attention.vhr import VHR
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.baselines.stand_in import Drawn, StandIn
from vlmfix.methods.pruning.random_tokens import item_seed
from vlmfix.methods.registry import register_method


@dataclass(frozen=True, kw_only=True)
class RandomVHR(Drawn, VHR):
    """VHR, whose factors go to other heads of the layer."""

    def _choose(self, context: DecodeContext, layer: int, heads: Tensor) -> tuple[Tensor, Tensor]:
        factors, count = super()._choose(context, layer, heads)
        order = head_order(factors.shape[2], layer, seed=self.seed)
        return factors[:, :, order.to(factors.device)], count


@dataclass(frozen=True, kw_only=True)
class RandomVAR(Drawn, VAR):
    """VAR, which redistributes in other heads of the layer than those that look at the image."""

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        chosen = (super().edit_weights(context, layer, weights) != weights).any(dim=-1, keepdim=True)
        everywhere = context.state[self, layer].redistribute(
            weights, moved_fraction=self.moved_fraction, min_image_mass=0.0, min_non_sink_share=0.0
        )
        key = self, layer, "order"
        if key not in context.state:  # the same in all sequences
            order = head_order(weights.shape[1], layer, seed=self.seed)
            context.state[key] = order.to(weights.device)[None]
        return torch.where(chosen[:, context.state[key][0]], everywhere, weights)


@dataclass(frozen=True, kw_only=True)
class RandomADHH(Drawn, ADHH):
    """AD-HH with other heads."""

    def draw(self, config: PreTrainedConfig) -> Self:
        assert self.heads is not None
        total = config.get_text_config().num_attention_heads
        return dataclasses.replace(self, heads=other_heads(self.heads, total, seed=self.seed))


@dataclass(frozen=True, kw_only=True)
class RandomACT(Drawn, ACT):
    """ACT with other heads."""

    def draw(self, config: PreTrainedConfig) -> Self:
        if not isinstance(self.heads, tuple):
            raise ValueError("ACT edits all heads with heads='all', and no others could be drawn; list some")
        total = config.get_text_config().num_attention_heads
        return dataclasses.replace(self, heads=other_heads(self.heads, total, seed=self.seed))


@register_method("baseline.random_heads")
@dataclass(frozen=True, kw_only=True)
class BaselineRandomHeads(StandIn):
    """A method that chooses heads, with as many random heads in each layer and all else alike: the gain of
    editing heads, whichever. Reconstructed from the controls of arXiv 2510.21518.

    Listed heads (AD-HH, ACT) are replaced by heads of the same layer that are not listed, as far as there
    are enough. Heads that are chosen in every prompt (VHR) or row (VAR) are counted, and the edit goes to
    others by an order that was drawn once for each layer, among which may be some of the same. AD-HH, VAR and
    ACT still edit a head by what it attends to. One draw says little: compare with several seeds.

    Args:
        of: "vhr", "adhh", "var" or "act".
        settings: see `StandIn`.
        seed: see `StandIn`.
    """

    of: str = "vhr"

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="what VHR, AD-HH, VAR or ACT changes, in random heads",
        where="that of the method, in the same layers",
        forwards=1.0,
        provenance="reconstruction",
        paper="2510.21518",
    )
    identity_parameters: ClassVar = {"of": "vhr", "settings": {"head_scale": 1}}
    stand_ins: ClassVar[Mapping[str, type[Drawn]]] = {
        "vhr": RandomVHR,
        "adhh": RandomADHH,
        "var": RandomVAR,
        "act": RandomACT,
    }


def head_order(heads: int, layer: int, *, seed: int) -> Tensor:
    """A random order of the heads of a layer, `(heads,)` int64 on the CPU."""
    return torch.randperm(heads, generator=torch.Generator().manual_seed(item_seed(seed, [layer])))


def other_heads(listed: Sequence[tuple[int, int]], heads: int, *, seed: int) -> tuple[tuple[int, int], ...]:
    """As many random heads in each layer as are listed, those that are not listed first.

    Args:
        listed: pairs of layer and head.
        heads: of a layer.
        seed: of the draws.
    """
    drawn: list[tuple[int, int]] = []
    for layer in sorted({layer for layer, _ in listed}):
        own = {head for each, head in listed if each == layer}
        order = sorted(head_order(heads, layer, seed=seed).tolist(), key=own.__contains__)
        drawn += [(layer, head) for head in order[: len(own)]]
    return tuple(sorted(drawn))
