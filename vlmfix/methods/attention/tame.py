"""TAME: attention at a lower temperature, the lower the smaller queries and keys are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.capabilities import EditsQueries
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("tame")
@dataclass(frozen=True, kw_only=True)
class TAME(Method, EditsQueries):
    """TAME (ICLR 2025, "Intervening Anchor Token"; github.com/Everlyn-Labs/ANTRP): scores of all keys are
    multiplied by one number of each sequence, layer and step, a little above 1, which sharpens the attention.

    It comes from the squared norms of the queries of a pass, and of all keys. The prompt is one pass; the
    released code takes means over the batch, too, and its number may become negative where these sums are
    below 1. Here each sequence has its own, and the number stays in (1, (1 + gamma)^2].

    Args:
        gamma: strength, in [0, 10]; 0 leaves the model as it is.
    """

    gamma: float = 0.8

    info: ClassVar = MethodInfo(
        stage="attention",
        changes="scores of all keys, multiplied by a number above 1",
        where="all rows and layers",
        forwards=1.0,
        provenance="released code",
        paper="github.com/Everlyn-Labs/ANTRP",
    )
    identity_parameters: ClassVar = {"gamma": 0}
    search_space: ClassVar = {"gamma": Between(0.1, 4, log=True)}

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0, 10)

    def edit_query(self, context: DecodeContext, layer: int, query: Tensor, key: Tensor) -> Tensor:
        if not context.layout.has_image:
            return query
        factors = self._factors(context, layer, query, key)
        taken = self.takes(context).to(query.device)[:, None]
        factors = torch.where(taken, factors, 1.0)
        heads = query.shape[1]
        context.count(self, layer, heads * (factors != 1).any(dim=1), heads)
        context.measure(self, size=factors[:, -1:])
        return (query * factors[:, None, :, None]).to(query.dtype)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "number by which the scores of the newest token are multiplied"}

    def inactive_reason(self, context: DecodeContext) -> str:
        return "gamma is too small to tell; raise it"

    def _factors(self, context: DecodeContext, layer: int, query: Tensor, key: Tensor) -> Tensor:
        """Of the rows of this pass, `(batch, rows or 1)` float32."""
        layout, norms = context.layout_at(layer), squared_norms(query)
        if context.is_prefill:
            real = layout.real_tokens.to(query.device)
            sums = [(each * real).sum(dim=1, keepdim=True) for each in (norms, squared_norms(key))]
            context.state[self, layer] = sums[1], sharpening(sums[0], sums[1], self.gamma)
        of_keys: Tensor
        of_prompt: Tensor
        of_keys, of_prompt = context.state[self, layer]
        if context.step == 0:  # the last row of the prompt may be read again, too
            return of_prompt
        new = query.shape[2] if context.reads_on(query.shape[2]) else query.shape[2] - layout.length
        seen = of_keys + _seen_keys(context, layout, squared_norms(key[:, :, layout.length :]))
        of_new = sharpening(norms[:, -new:], seen[:, -new:], self.gamma)
        return torch.cat([of_prompt.expand(-1, query.shape[2] - new), of_new], dim=1)


def _seen_keys(context: DecodeContext, layout: PromptLayout, norms: Tensor) -> Tensor:
    """Sum over the keys after the prompt that each new row sees, the newest rows last.

    Args:
        norms: of these keys, `(batch, keys)`.
    """
    candidates = context.engine.candidates
    if candidates is None or candidates.size == 1:
        return norms.cumsum(dim=1)
    mask = candidates.attention_mask(layout, norms.device)
    assert mask is not None
    seen: Tensor = mask[:, 0, :, layout.length :] * norms[:, None]
    return seen.sum(dim=-1)


def squared_norms(states: Tensor) -> Tensor:
    """Mean over the heads of the squared norms of queries or keys, `(batch, tokens)` float32.

    Args:
        states: `(batch, heads, tokens, head_dim)`.
    """
    return states.float().square().sum(dim=-1).mean(dim=1)


def sharpening(queries: Tensor, keys: Tensor, gamma: float) -> Tensor:
    """The number by which scores are multiplied (ICLR 2025, "Intervening Anchor Token").

    Args:
        queries: sums of the squared norms of the queries of a pass.
        keys: the same of keys.
        gamma: strength.
    """
    of_queries, of_keys = (1 + gamma / each.clamp_min(math.e).log() for each in (queries, keys))
    return of_queries * of_keys
