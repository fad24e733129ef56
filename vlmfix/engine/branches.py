"""Branches: other readings of a prompt that are decoded in the same batch, to compare their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import of_tokens
from vlmfix.engine.state import Branch


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
    positions = [
        branch.positions(real, context.step, context.first_position)[..., -1:]
        for branch in context.engine.branches
    ]
    joined = JoinedCache([cache, *(_cache(branch) for branch in context.engine.branches)], rows)
    tokens = {
        name: value.repeat(1 + len(context.engine.branches), *[1] * (value.ndim - 1))
        for name, value in of_tokens(kwargs, embeddings).items()
    }
    return with_cache(decoder, kwargs, joined) | {
        **tokens,
        "inputs_embeds": embeddings.repeat(1 + len(context.engine.branches), 1, 1),
        "position_ids": torch.cat([real, *positions], dim=-2),
        "attention_mask": None,
    }


def follow_beams(context: DecodeContext, cache: DynamicCache) -> None:
    """Let the caches of the branches, and the gates, follow the cache of the prompts when beam search
    reorders it."""
    reorder = cache.reorder_cache

    def reordered(beam_idx: torch.LongTensor) -> None:
        reorder(beam_idx)
        for branch in context.engine.branches:
            _cache(branch).reorder_cache(beam_idx)
        context.engine.gates.follow(beam_idx)

    vars(cache)["reorder_cache"] = reordered
    context.engine.followed = cache


def unfollow_beams(context: DecodeContext) -> None:
    """Leave the cache of the prompts as it would be without branches."""
    if context.engine.followed is not None:
        del vars(context.engine.followed)["reorder_cache"]
        context.engine.followed = None


def _cache(branch: Branch) -> DynamicCache:
    assert branch.cache is not None
    return branch.cache
