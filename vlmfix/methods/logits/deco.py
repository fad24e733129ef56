"""DeCo: towards what an inner layer already knew, among the likeliest tokens (arXiv 2410.11779)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import ExitRows
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import rule_out
from vlmfix.methods.logits.early_exit import AddsEarlyExits
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range, check_whole

# First and last exit, as shares of the depth: 20 to 28 of 32 layers.
_EXITS = 0.625, 0.875


@register_method("deco")
@dataclass(frozen=True, kw_only=True)
class DeCo(AddsEarlyExits):
    """Dynamic Correction Decoding (arXiv 2410.11779): the logits of the inner layer that is surest of one of
    the likely tokens are added, weighted by how sure it is; it needs no image.

    Only the likeliest tokens stay possible, which cuts the tail off under sampling, too. The released code
    works on one sequence at a time; here every sequence of a batch has its own tokens and layer. The layers
    are published for 32; other depths get the same shares, a rule that is not the paper's.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        top_p: the smallest set of tokens whose probabilities reach this stays possible, in [0, 1]; 1 keeps
            all.
        top_k: and at most so many of them; 0 for no limit.
        exits: layers whose input is turned into logits, 0-based; None: 20 to 28 of 32, in proportion.
        normed: whether they go through the final norm of the model.
    """

    alpha: float = 0.6
    top_p: float = 0.9
    top_k: int = 20
    normed: bool = True

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="the logits of an inner layer are added",
        where="every step, among the likeliest tokens",
        forwards=1.0,
        provenance="released code",
        paper="2410.11779",
    )
    identity_parameters: ClassVar = {"alpha": 0, "top_p": 1, "top_k": 0}
    search_space: ClassVar = {"alpha": Between(0.1, 1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)
        check_range("top_p", self.top_p, 0, 1)
        check_whole("top_k", self.top_k, 0)

    @staticmethod
    def published_exits(depth: int) -> tuple[int, ...]:
        """At the depth that is published for 32."""
        first, last = (round(share * depth) for share in _EXITS)
        return tuple(range(min(first, depth - 1), min(last, depth - 1) + 1))

    def exit_rows(self, context: DecodeContext) -> ExitRows:
        rows = super().exit_rows(context)
        return rows._replace(layers=()) if self.alpha == 0 else rows

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        likeliest = Likeliest.of(logits, self.top_p, self.top_k)
        if branches:
            exits = torch.stack(list(branches), dim=1)
            corrected, sureness = likeliest.correct(exits, self.alpha)
            context.measure(self, size=sureness[:, None])
        else:
            corrected = likeliest.logits
        context.measure(self, candidates=likeliest.mask.sum(dim=1, keepdim=True))
        return likeliest.spread(corrected, logits)

    def inactive_reason(self, context: DecodeContext) -> str:
        return (
            f"top_p={self.top_p:g} and top_k={self.top_k} rule no token out, and alpha={self.alpha:g} is too "
            "small to move one; raise alpha or lower top_p"
        )

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "highest probability that an inner layer gives to a likely token"}


class Likeliest(NamedTuple):
    """The tokens that stay possible, likeliest first.

    Args:
        tokens: their ids, `(batch, tokens)` int64.
        logits: theirs.
        mask: which of them belong to the set, `(batch, tokens)` bool.
    """

    tokens: Tensor
    logits: Tensor
    mask: Tensor

    @classmethod
    def of(cls, logits: Tensor, top_p: float, top_k: int) -> Likeliest:
        """The smallest set whose probabilities reach `top_p`, of `top_k` tokens at most (arXiv 2410.11779).

        Args:
            logits: `(batch, vocabulary)`.
            top_p: 1 for no limit.
            top_k: 0 for no limit.
        """
        size = logits.shape[-1]
        values, tokens = logits.topk(min(top_k or size, size), dim=-1)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if top_p < 1:
            total = logits.logsumexp(dim=-1, keepdim=True)
            reached = (values - total).exp().cumsum(dim=-1) >= top_p
            mask[:, 1:] = ~reached[:, :-1]  # the token that reaches it belongs to the set
        return cls(tokens, values, mask)

    def correct(self, exits: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Add the logits of the exit that is surest of one of the tokens, weighted by its sureness.

        Args:
            exits: logits of inner layers, `(batch, exits, vocabulary)`.
            alpha: 0 or more.

        Returns:
            Logits of the tokens, `(batch, tokens)`, and the sureness: the probability that this exit gives to
            its likeliest token of the set, `(batch,)`.
        """
        own = exits.gather(2, self.tokens[:, None].expand(-1, exits.shape[1], -1))
        probabilities = (own - exits.logsumexp(dim=-1, keepdim=True)).exp()
        surest = probabilities.masked_fill(~self.mask[:, None], -1.0).amax(dim=2)
        chosen = surest.argmax(dim=1, keepdim=True)
        sureness = surest.gather(1, chosen)
        chosen_logits = own.gather(1, chosen[..., None].expand(-1, -1, own.shape[2])).squeeze(1)
        return self.logits + alpha * sureness * chosen_logits, sureness.squeeze(1)

    def spread(self, values: Tensor, logits: Tensor) -> Tensor:
        """Values of the tokens as logits of the whole vocabulary, the others ruled out."""
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, self.tokens, self.mask)
        return rule_out(logits, logits.scatter(1, self.tokens, values), kept)
