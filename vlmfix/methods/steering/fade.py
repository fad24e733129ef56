"""FADE: what the feed-forward parts of some middle layers add, made smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.steering.base import NewRowEdit
from vlmfix.methods.validation import check_range
from vlmfix.models.structure import StreamSite


@register_method("fade")
@dataclass(frozen=True, kw_only=True)
class FADE(NewRowEdit):
    """Feed-forward attenuation (arXiv 2606.29431), a reconstruction from the abstract and a digest.

    Attention gathers what the image shows, feed-forward parts of middle layers write what the language
    expects. What these add to the residual stream at the last prompt token and at new ones is scaled by `1 -
    alpha`. The layers (16 to 22 of 32) come from the digest; strength and rows are this library's own.

    Args:
        alpha: what is taken away, in [0, 1]; 0 leaves the model as it is.
        layers: see `StreamEdit`.
    """

    alpha: float = 0.2

    info: ClassVar = MethodInfo(
        stage="steering",
        changes="what feed-forward parts add, made smaller",
        where="last prompt row and new rows; layers 16 to 22 of 32",
        forwards=1.0,
        provenance="reconstruction",
        paper="2606.29431",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    published_layers: ClassVar = (16, 23)
    stream_sites: ClassVar = ("feed_forward",)
    search_space: ClassVar = {"alpha": Between(0.05, 0.8)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 1)

    def edit_stream(self, context: DecodeContext, layer: int, site: StreamSite, states: Tensor) -> Tensor:
        earlier, new = self.new_rows(context, layer, states)
        context.measure(self, size=self.alpha * new[:, -1:].float().norm(dim=-1))
        return self.edited(context, layer, states, torch.cat([earlier, attenuate(new, self.alpha)], dim=1))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "length of what is taken from a feed-forward part's addition"}


def attenuate(added: Tensor, alpha: float) -> Tensor:
    """What a feed-forward part adds, `(..., hidden)`, made smaller by a share (arXiv 2606.29431)."""
    return (1 - alpha) * added
