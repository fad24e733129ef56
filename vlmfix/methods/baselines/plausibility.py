"""Controls of the cut: ruling out unlikely tokens, alone and with sharper logits (arXiv 2504.10020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import LogitsMixer, plausible, rule_out
from vlmfix.methods.logits.deco import Likeliest
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range, check_whole


@register_method("baseline.plausibility")
@dataclass(frozen=True, kw_only=True)
class BaselinePlausibility(LogitsMixer):
    """The cut of contrastive methods without their contrast (arXiv 2504.10020): how much of their gain is
    that sampling becomes nearly greedy. Greedy tokens stay as they are.

    Args:
        beta: plausibility cut, see `LogitsMixer`.
        top_p: the smallest set of likeliest tokens that reaches this probability is kept, in [0, 1]; 1: all.
        top_k: of these at most so many, 0 or more; 0: all. DeCo's candidates (arXiv 2410.11779) are those of
            `beta=0, top_p=0.9, top_k=20`.
    """

    top_p: float = 1.0
    top_k: int = 0

    needs_image: ClassVar = False
    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="logits: unlikely tokens are ruled out",
        where="every step",
        forwards=1.0,
        provenance="paper",
        paper="2504.10020",
    )
    identity_parameters: ClassVar = {"beta": 0, "top_p": 1, "top_k": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("top_p", self.top_p, 0, 1)
        check_whole("top_k", self.top_k, 0)

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        kept = candidates(logits, top_p=self.top_p, top_k=self.top_k)
        removed = logits.softmax(dim=-1).masked_fill(kept & plausible(logits, self.beta), 0.0).sum(dim=-1)
        context.measure(self, size=removed[:, None].to(context.layout.image_tokens.device))
        return rule_out(logits, logits, kept)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        sums.details = {"size": "probability of the tokens that are ruled out"}


@register_method("baseline.sharpen")
@dataclass(frozen=True, kw_only=True)
class BaselineSharpen(LogitsMixer):
    """Logits times a number, and the cut (arXiv 2504.10020): the gain of larger logits, as methods have that
    add the logits of further branches. It is the cut at the temperature `1 / c`, taken before it.

    Args:
        c: total weight of the added branches plus 1, in (0, 100]; 1 leaves only the cut.
        beta: plausibility cut, see `LogitsMixer`.
    """

    c: float = 4.0

    needs_image: ClassVar = False
    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="logits: multiplied, and unlikely tokens are ruled out",
        where="every step",
        forwards=1.0,
        provenance="reconstruction",
        paper="2504.10020",
    )
    identity_parameters: ClassVar = {"c": 1, "beta": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("c", self.c, 0, 100)
        if self.c == 0:
            raise ValueError(f"c is {self.c!r}; it must be above 0")

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return self.c * logits


def candidates(logits: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """The smallest set of likeliest tokens that reaches a probability, at most so many (arXiv 2410.11779).

    Args:
        logits: `(batch, vocabulary)`.
        top_p: in [0, 1]; 1: all.
        top_k: 0 or more; 0: no limit.

    Returns:
        `(batch, vocabulary)` bool.
    """
    if top_p == 1 and top_k == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    likeliest = Likeliest.of(logits, top_p, top_k)
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, likeliest.tokens, likeliest.mask)
