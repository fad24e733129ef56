"""SLA: the logits of the last layers before the end are mixed in (second half of VISTA, arXiv 2502.03628)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import ExitRows
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import finite
from vlmfix.methods.logits.early_exit import AddsEarlyExits
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, OneOf
from vlmfix.methods.validation import check_range

# So many exits, the last ones before the end: 26 to 31 of 32 layers.
_EXITS = 6


@register_method("sla")
@dataclass(frozen=True, kw_only=True)
class SelfLogitAugmentation(AddsEarlyExits):
    """Self-logit augmentation, the second half of VISTA (arXiv 2502.03628): the mean of the logits of the
    last layers before the end is mixed into those of the model; it needs no image.

    Grounded words are said to be likeliest a few layers before the end. As in the released code, logits and
    not probabilities are averaged, and the hidden states go to the output embeddings without the final norm:
    they are large in late layers, so that the weight then acts more strongly than its number says. Of a model
    with fewer than seven layers all exits after the embedding take part.

    Args:
        gamma: weight of the mean, in [0, 1]; 0 leaves the model as it is.
        exits: layers whose input is turned into logits, 0-based; None: the last six, 26 to 31 of 32.
        normed: whether they go through the final norm of the model.
    """

    gamma: float = 0.3

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="the mean of the logits of the layers before the last is mixed in",
        where="every step",
        forwards=1.0,
        provenance="released code",
        paper="2502.03628",
    )
    identity_parameters: ClassVar = {"gamma": 0}
    search_space: ClassVar = {"gamma": Between(0.05, 0.6), "normed": OneOf((False, True))}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0, 1)

    @staticmethod
    def published_exits(depth: int) -> tuple[int, ...]:
        """The last six, without the embedding."""
        return tuple(range(min(max(1, depth - _EXITS), depth - 1), depth))

    def exit_rows(self, context: DecodeContext) -> ExitRows:
        # A head is linear, so that the logits of the mean are the mean of the logits: one row and not six.
        return super().exit_rows(context)._replace(averaged=not _caps_logits(context))

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        exits = torch.stack(list(branches), dim=1)
        agrees = finite(exits).mean(dim=1).argmax(dim=-1) == logits.argmax(dim=-1)
        context.measure(self, size=agrees[:, None].float())
        return augment(logits, exits, self.gamma)

    def inactive_reason(self, context: DecodeContext) -> str:
        return f"gamma={self.gamma:g} is too small to move the distribution of a token; raise it"

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the steps in which the mean has the model's likeliest token"}


def _caps_logits(context: DecodeContext) -> bool:
    assert context.config is not None
    return getattr(context.config.get_text_config(), "final_logit_softcapping", None) is not None


def augment(logits: Tensor, exits: Tensor, gamma: float) -> Tensor:
    """`(1 - gamma) * logits + gamma * mean of the exits` (arXiv 2502.03628).

    Args:
        logits: of the model, `(batch, vocabulary)`; infinite ones stay.
        exits: of the early exits, `(batch, exits, vocabulary)`.
        gamma: in [0, 1].
    """
    mean = finite(exits).mean(dim=1)
    return torch.where(logits == -torch.inf, logits, (1 - gamma) * logits + gamma * mean)
