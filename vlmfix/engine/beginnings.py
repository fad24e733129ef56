"""Sequences that begin alike: what the decoder is given for their beginnings, and for what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from vlmfix.engine.caches import without_cache
from vlmfix.engine.decoder_inputs import extras
from vlmfix.engine.state import Prefix

# What Qwen3-VL adds after its first layers, and where; the one kind of addition that is taken apart here.
_PLACES, _FEATURES = "visual_pos_masks", "deepstack_visual_embeds"


@dataclass(eq=False)
class WholeSequences:
    """A pass of the decoder that reads whole sequences, left-padded, in which tokens see those up to
    themselves.

    Args:
        kwargs: of the decoder.
        real_tokens: everything but padding, `(batch, tokens)` bool.
        positions: of the rotary embedding, `(..., batch or 1, tokens)`.
    """

    kwargs: dict[str, Any]
    real_tokens: Tensor
    positions: Tensor

    @property
    def comes_apart(self) -> bool:
        """Whether all that the decoder is given is known to be of single tokens."""
        return not set(extras(self.kwargs)) - {_PLACES, _FEATURES}

    @cached_property
    def starts(self) -> Tensor:
        """Column of the first token of each sequence, `(batch,)`."""
        return self.real_tokens.int().argmax(dim=1)

    @cached_property
    def all_positions(self) -> Tensor:
        """Those of every sequence, `(..., batch, tokens)`."""
        return self.positions.expand(*self.positions.shape[:-2], *self.real_tokens.shape)

    def beginnings(self, prefix: Prefix) -> dict[str, Any]:
        """Arguments of a pass over the beginnings, without a cache."""
        columns = prefix.layout.positions
        assert columns is not None
        rows = prefix.first_rows[:, None].expand_as(columns)
        mask = prefix.layout.real_tokens.long() if prefix.layout.has_padding else None
        return self._part(rows, columns, prefix.layout.real_tokens, mask)

    def rest(self, prefix: Prefix) -> dict[str, Any]:
        """Arguments of a pass over what follows, without a cache."""
        batch, length = self.real_tokens.shape
        columns = torch.arange(prefix.places.shape[1], length, device=self.real_tokens.device)
        rows = torch.arange(batch, device=columns.device)[:, None].expand(-1, len(columns))
        return self._part(
            rows, columns.expand_as(rows), self.real_tokens[:, columns], self.kwargs.get("attention_mask")
        )

    def common_lengths(self, other: WholeSequences, rows: Tensor) -> Tensor:
        """How many tokens each sequence begins with that are those of another one, in value and position,
        `(batch,)`.

        Args:
            rows: of `other`, that each is compared with, `(batch,)` int64.
        """
        batch, length = self.real_tokens.shape
        ahead = torch.arange(min(length, other.real_tokens.shape[1]), device=rows.device)
        own, others = self.starts[:, None] + ahead, other.starts[rows][:, None] + ahead
        alike = (own < length) & (others < other.real_tokens.shape[1])
        of_own, of_others = (
            (of_rows[:, None], columns.clamp_max(tokens.shape[1] - 1))
            for of_rows, columns, tokens in (
                (torch.arange(batch, device=rows.device), own, self.real_tokens),
                (rows, others, other.real_tokens),
            )
        )
        for mine, theirs in zip(self._values(), other._values(), strict=False):
            same = mine[of_own] == theirs[of_others].to(mine.device)
            alike &= same.all(dim=-1).to(alike.device)
        return alike.long().cumprod(dim=1).sum(dim=1)

    def _values(self) -> list[Tensor]:
        """All that tells tokens apart, `(batch, tokens, values)` each; where features are injected comes
        before these, so that sequences without any are unlike there."""
        embeddings = self.kwargs["inputs_embeds"]
        positions = self.all_positions.reshape(-1, *self.real_tokens.shape).permute(1, 2, 0)
        places = self.kwargs.get(_PLACES)
        if places is None:
            places = torch.zeros_like(self.real_tokens)
        values = [embeddings, positions.to(embeddings.device), places[..., None].to(embeddings.device)]
        for features in self.kwargs.get(_FEATURES) or ():
            dense = torch.zeros_like(embeddings)
            dense[places.to(dense.device)] = features.to(dense)
            values.append(dense)
        return values

    def values(self, rows: Sequence[int], spans: Sequence[slice]) -> list[list[Tensor]]:
        """All that tells parts of sequences apart, of each `(tokens, values)` tensors, embeddings first.

        Args:
            rows: the sequences.
            spans: columns of the part of each.
        """
        values = self._values()
        return [[each[row, span] for each in values] for row, span in zip(rows, spans, strict=True)]

    def _part(
        self, rows: Tensor, columns: Tensor, real_tokens: Tensor, mask: Tensor | None
    ) -> dict[str, Any]:
        """Arguments for the tokens at `(rows, columns)` of the batch."""

        def at(values: Tensor) -> Tensor:
            return values[..., rows.to(values.device), columns.to(values.device)]

        part = without_cache(self.kwargs)
        embeddings = self.kwargs["inputs_embeds"]
        part["inputs_embeds"] = embeddings[rows.to(embeddings.device), columns.to(embeddings.device)]
        part |= {"attention_mask": mask, "position_ids": at(self.all_positions)}
        visual = self.kwargs.get(_PLACES)
        if visual is not None:  # features are listed over the whole batch
            number = (visual.flatten().long().cumsum(0) - 1).view_as(visual)
            part[_PLACES] = at(visual) & real_tokens.to(visual.device)
            chosen = at(number)[part[_PLACES]]
            part[_FEATURES] = [each[chosen.to(each.device)] for each in self.kwargs[_FEATURES]]
        return part


def keeps_all_tokens(cache: Any) -> bool:
    """Whether a cache is one of keys and values of all tokens in every layer, and where they are computed, so
    that parts can be taken from it."""
    return (
        isinstance(cache, DynamicCache)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and not cache.offloading
    )


def fill(cache: DynamicCache, prefix: Prefix, layers: Sequence[Any]) -> None:
    """Begin an empty cache with the keys and values of the beginnings.

    Args:
        layers: of the cache that holds the beginnings.
    """
    for index, cached in enumerate(layers):
        key, value = prefix.spread_heads(cached.keys), prefix.spread_heads(cached.values)
        cache.update(key[:, :, :0], value[:, :, :0], index)  # makes the layer, without a copy of all
        layer: Any = cache.layers[index]
        layer.keys, layer.values = key, value
