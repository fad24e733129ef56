"""Branches: other readings of a prompt that are decoded in the same batch, to compare their logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.layout import PromptLayout

if TYPE_CHECKING:
    from vlmfix.engine.context import DecodeContext


@dataclass(eq=False)
class Selection:
    """The tokens that a branch sees in its deeper layers, chosen in every step by its own attention.

    What was chosen in a step holds for all tokens that are read in it; they keep what they became. A token
    that comes before all chosen ones sees itself alone.

    Args:
        layer: the first layer in which only chosen tokens are seen.
        choose: from the attention of the newest token in the layer before, averaged over the heads, and the
            tokens that it sees at all, to those that are chosen, `(prompts, newest, keys)` each. Without a
            cache, the newest tokens of earlier steps come along; else there is one.
        seen: what the tokens of this step see from `layer` on, `(prompts, 1, queries, keys)` bool.
    """

    layer: int
    choose: Callable[[Tensor, Tensor], Tensor]
    seen: Tensor | None = None

    def update(self, weights: Tensor, visible: Tensor) -> None:
        """Choose for a step.

        Args:
            weights: attention of the newest tokens, `(prompts, heads, newest, keys)`.
            visible: what the tokens of this step see, `(prompts or 1, queries, keys)` bool.
        """
        (queries, keys), newest = visible.shape[-2:], weights.shape[2]
        chosen = self.choose(weights.mean(dim=1), visible[:, -newest:])
        step = (torch.arange(queries, device=weights.device) - (queries - newest)).clamp_min(0)
        seen = visible & chosen[:, step]
        itself = torch.ones_like(visible[0]).tril(keys - queries).triu(keys - queries)
        self.seen = (seen | (itself & ~seen.any(dim=-1, keepdim=True)))[:, None]


@dataclass(eq=False)
class Branch:
    """A degraded or enriched form of each prompt, with a cache of its own; neither sees the other.

    Args:
        inputs_embeds: `(prompts, tokens, hidden)`, image features merged.
        real_tokens: everything but padding, which is on the left, `(prompts, tokens)` bool.
        position_ids: of the rotary embedding, `(prompts, tokens)` or `(axes, prompts, tokens)`; None: counted
            from the first real token.
        decoder_inputs: what else the text decoder wants, such as injected visual features.
        fused: whether it is decoded in one pass with the prompts, or in one of its own.
        selection: which tokens its deeper layers see; None: all.
        cache: None without one.
    """

    inputs_embeds: Tensor
    real_tokens: Tensor
    position_ids: Tensor | None = None
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict)
    fused: bool = True
    selection: Selection | None = None
    cache: DynamicCache | None = None

    @cached_property
    def layout(self) -> PromptLayout:
        """Its padding, in the form in which attention wants it."""
        return PromptLayout(torch.zeros_like(self.real_tokens), self.real_tokens)

    def positions(self, like: Tensor, generated: int) -> Tensor:
        """Positions of its tokens and of so many generated ones, with the axes of `like`."""
        own = self.layout.counted_positions if self.position_ids is None else self.position_ids
        own = own.to(like.device)
        own = own.expand(*like.shape[:-2], *own.shape[-2:])
        ahead = torch.arange(1, generated + 1, device=own.device)
        return torch.cat([own, own[..., -1:] + ahead], dim=-1)


class Parts(tuple[Tensor, ...]):
    """Keys or values of the prompts and of each branch, `(batch, heads, keys, head_dim)` each."""


class JoinedCache(DynamicCache):
    """What one pass over prompts and branches writes to: the cache of each of them.

    Args:
        caches: of the prompts, then of the branches.
        rows: sequences in each.
    """

    def __init__(self, caches: Sequence[DynamicCache], rows: int) -> None:
        super().__init__()
        self.layers = caches[0].layers  # lengths are those of the prompts
        self._caches = caches
        self._rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Append to each cache its rows."""
        pairs = zip(self._caches, key_states.split(self._rows), value_states.split(self._rows), strict=True)
        written = [cache.update(key, value, layer_idx, *args, **kwargs) for cache, key, value in pairs]
        return Parts(key for key, _ in written), Parts(value for _, value in written)


def join(context: DecodeContext, decoder: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a decode step in which every branch takes the token of its prompt."""
    embeddings, cache = kwargs["inputs_embeds"], read_cache(kwargs)
    rows = embeddings.shape[0]
    given = kwargs.get("position_ids")
    real = context.position_of(context.step - 1) if given is None else given
    real = real.expand(*real.shape[:-2], rows, 1)
    positions = [branch.positions(real, context.step)[..., -1:] for branch in context.branches]
    joined = JoinedCache([cache, *(_cache(branch) for branch in context.branches)], rows)
    return with_cache(decoder, kwargs, joined) | {
        "inputs_embeds": embeddings.repeat(1 + len(context.branches), 1, 1),
        "position_ids": torch.cat([real, *positions], dim=-2),
        "attention_mask": None,
    }


def follow_beams(context: DecodeContext, cache: DynamicCache) -> None:
    """Let the caches of the branches follow that of the prompts, when beam search reorders it."""
    reorder = cache.reorder_cache

    def reordered(beam_idx: Tensor) -> None:
        reorder(beam_idx)
        for branch in context.branches:
            _cache(branch).reorder_cache(beam_idx)

    vars(cache)["reorder_cache"] = reordered
    context.followed = cache


def unfollow_beams(context: DecodeContext) -> None:
    """Leave the cache of the prompts as it would be without branches."""
    if context.followed is not None:
        del vars(context.followed)["reorder_cache"]
        context.followed = None


def _cache(branch: Branch) -> DynamicCache:
    assert branch.cache is not None
    return branch.cache
