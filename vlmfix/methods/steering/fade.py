"""FADE: what the feed-forward parts of some middle layers add, made smaller."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import Edit
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import fitted_layers, layer_range
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.steering.base import NewRowEdit, StreamFormula
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile


@register_method("fade")
@dataclass(frozen=True, kw_only=True)
class FADE(StreamFormula, NewRowEdit):
    """Feed-forward attenuation (arXiv 2606.29431), a reconstruction from the abstract and a digest.

    Attention gathers what the image shows, feed-forward parts of middle layers write what the language
    expects. What these add to the residual stream at the last prompt token and at new ones is scaled by `1 -
    alpha`. The layers (16 to 22 of 32) come from the digest; strength and rows are this library's own.

    Args:
        alpha: what is taken away, in [0, 1]; 0 leaves the model as it is.
        layers: first edited layer and the one after the last, 0-based; None: 16 to 22 of 32, at the same
            depth.
    """

    alpha: float = 0.2
    layers: tuple[int, int] | None = None

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what feed-forward parts add, made smaller",
        where="last prompt row and new rows; layers 16 to 22 of 32",
        forwards=1.0,
        provenance="reconstruction",
        paper="2606.29431",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    stream_sites: ClassVar = ("feed_forward",)
    search_space: ClassVar = {"alpha": Between(0.05, 0.8)}

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        return dataclasses.replace(self, layers=fitted_layers(self.layers, (16, 23), config))

    def edits_layer(self, layer: int) -> bool:
        assert self.layers is not None
        return self.layers[0] <= layer < self.layers[1]

    def formula(self, context: DecodeContext, layer: int, device: torch.device) -> Edit:
        return Edit(_attenuated, settings={"alpha": self.alpha})

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "length of what is taken from a feed-forward part's addition"}


def _attenuated(added: Tensor, *, alpha: float) -> tuple[Tensor, tuple[Tensor]]:
    """What a feed-forward part adds, made smaller, and the length of what is taken at the newest token."""
    return attenuate(added, alpha), (alpha * added[:, -1:].float().norm(dim=-1),)


def attenuate(added: Tensor, alpha: float) -> Tensor:
    """What a feed-forward part adds, `(..., hidden)`, made smaller by a share (arXiv 2606.29431)."""
    return (1 - alpha) * added
