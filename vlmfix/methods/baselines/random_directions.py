"""Random directions: the control that any direction in the residual stream must beat."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.baselines.stand_in import Drawn, StandIn
from vlmfix.methods.pruning.random_tokens import item_seed
from vlmfix.methods.registry import register_method
from vlmfix.methods.steering.base import unit
from vlmfix.methods.steering.cei import CEI
from vlmfix.methods.steering.nullu import Nullu
from vlmfix.methods.steering.rudder import RUDDER
from vlmfix.methods.steering.vista import VISTA
from vlmfix.methods.steering.vti import VTI
from vlmfix.models.structure import StreamSite


@dataclass(frozen=True, kw_only=True)
class RandomVISTA(Drawn, VISTA):
    """VISTA with a direction for each layer that no prompt has a part in."""

    def read_ahead(
        self,
        context: DecodeContext,
        inputs_embeds: Tensor,
        decoder_inputs: Mapping[str, Any],
        read: Callable[[Branch], list[Tensor]],
    ) -> None:
        super().read_ahead(context, inputs_embeds, decoder_inputs, read)
        for layer in range(context.num_layers if context.layout.has_image else 0):
            key = self, layer
            context.state[key] = for_all(context.state[key], seed=item_seed(self.seed, [layer]))


@dataclass(frozen=True, kw_only=True)
class RandomVTI(Drawn, VTI):
    """VTI with a direction for each layer, and each token of the vision encoder, that was not calibrated."""

    def vectors(self, part: str, config: PreTrainedConfig) -> Tensor:
        return random_like(super().vectors(part, config), seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class RandomNullu(Drawn, Nullu):
    """Nullu with a subspace for each layer that was not calibrated."""

    def subspaces(self, config: PreTrainedConfig) -> Tensor:
        return _orthonormal(tuple(super().subspaces(config).shape), self.seed)


@dataclass(frozen=True, kw_only=True)
class RandomCEI(Drawn, CEI):
    """CEI with a state of the length of that of the prompt."""

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        after = super().edit_stream(context, layer, site, states)
        if context.is_prefill:
            key = self, "prompt"
            context.state[key] = for_all(context.state[key], seed=self.seed).to(states.dtype)
        return after


@dataclass(frozen=True, kw_only=True)
class RandomRUDDER(Drawn, RUDDER):
    """RUDDER with a direction that the prompt has no part in."""

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        after = super().edit_stream(context, layer, site, states)
        if context.is_prefill and site == "attention":
            key = self, "direction"
            context.state[key] = for_all(context.state[key], seed=self.seed)
        return after


@register_method("baseline.random_directions")
@dataclass(frozen=True, kw_only=True)
class BaselineRandomDirections(StandIn):
    """A steering method with random directions of the same length, and all else alike: the gain of pushing
    the residual stream, wherever. This library's own, in the spirit of the controls of arXiv 2504.10020,
    which has no random directions.

    Directions are drawn once for each layer (VTI: and token of the vision encoder) and are the same for all
    prompts; of Nullu, orthonormal ones as many as it removes. Strengths and gates of the method stay. One
    draw says little: compare with several seeds.

    Args:
        of: "vista", "vti", "nullu", "cei" or "rudder".
        settings: see `StandIn`.
        seed: see `StandIn`.
    """

    of: str = "vista"

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="what a steering method changes, along random directions",
        where="that of the method",
        forwards=1.0,
        provenance="reconstruction",
        paper="2504.10020",
    )
    identity_parameters: ClassVar = {"of": "vista", "settings": {"strength": 0}}
    stand_ins: ClassVar[Mapping[str, type[Drawn]]] = {
        "vista": RandomVISTA,
        "vti": RandomVTI,
        "nullu": RandomNullu,
        "cei": RandomCEI,
        "rudder": RandomRUDDER,
    }


def random_like(vectors: Tensor, *, seed: int) -> Tensor:
    """A random direction for each of some vectors `(..., hidden)`, of its length; float32."""
    lengths: Tensor = vectors.float().norm(dim=-1, keepdim=True)
    return lengths * _directions(tuple(vectors.shape), seed).to(lengths.device)


def for_all(vectors: Tensor, *, seed: int) -> Tensor:
    """One random direction for all of some vectors `(..., hidden)`, of the length of each; float32."""
    lengths: Tensor = vectors.float().norm(dim=-1, keepdim=True)
    return lengths * _directions((vectors.shape[-1],), seed).to(lengths.device)


@functools.lru_cache(maxsize=64)
def _directions(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random vectors of length 1 on the CPU."""
    return unit(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@functools.lru_cache(maxsize=8)
def _orthonormal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Random orthonormal rows, `(layers, rank, hidden)`, on the CPU."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rows: Tensor = torch.linalg.qr(drawn.mT).Q.mT.contiguous()
    return rows
