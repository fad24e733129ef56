"""The static cache of a run: what was read of prompts and branches, and slots for the tokens that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.errors import UnsupportedError

REMEDY = "leave out cache_implementation, for the default dynamic cache"


class RunCache:
    """A static cache whose sequences are the prompts and, after them, their branches; all end in one column.

    Without branches and pruning it is the one that `generate` was given. Else it is one of its own, in which
    that one shows what belongs to the prompts.

    Args:
        config: of the text decoder.
        given: an empty static cache.
        grown: what was read of the prompts; it is let go of, layer by layer, like those of the branches.
        context: of the run.

    Raises:
        UnsupportedError: there is no room for what is to come.
    """

    def __init__(self, config: Any, given: StaticCache, grown: DynamicCache, context: DecodeContext) -> None:
        self.given, self._context = given, context
        layers: Any = given.layers  # typed as their base class, without a length
        room = layers[0].max_cache_len - context.layout.length
        if room < context.engine.planned - 1:
            raise UnsupportedError(
                f"the static cache has {layers[0].max_cache_len} slots, and {context.layout.length} "
                f"tokens of the prompt and {context.engine.planned} new ones are to go into it; make it "
                "longer, or lower max_new_tokens"
            )
        self.branches = tuple(context.engine.branches)
        has_other_lengths = self.branches or context.pruning_stages
        self.cache = StaticCache(config, max_cache_len=1) if has_other_lengths else given
        caches = [grown, *(branch.cache for branch in self.branches)]
        self.firsts: list[int] = []
        self._masks: dict[tuple[PromptLayout, torch.device], tuple[Tensor, int]] = {}
        self.masks: list[Tensor] = []
        for index in range(len(grown.layers)):
            self._fill(index, caches, room)
        if self.cache is not given:
            vars(given)["reorder_cache"] = self._reorder

    def _fill(self, index: int, caches: Sequence[Any], room: int) -> None:
        layout = self._context.layout_at(index)
        real = [layout.real_tokens, *(branch.real_tokens for branch in self.branches)]
        length = max(each.shape[1] for each in real)
        own: Any = self.cache.layers[index]
        if self.cache is not self.given:
            own.max_cache_len = length + room
        self.firsts.append(length - layout.length)
        parts = [each.layers[index] for each in caches]
        self.cache.update(_joined(parts, "keys", length), _joined(parts, "values", length), index)
        key = (layout, own.keys.device)
        if key not in self._masks:
            seen = torch.cat([nn.functional.pad(each, (length - each.shape[1], 0)) for each in real])
            seen = nn.functional.pad(seen, (0, own.max_cache_len - length))[:, None, None]
            self._masks[key] = seen.to(own.keys.device), length
        self.masks.append(self._masks[key][0])
        if self.cache is not self.given:
            self._show(index)

    def _show(self, index: int) -> None:
        """Let the cache that was given hold what belongs to the prompts."""
        own: Any = self.cache.layers[index]
        shown: Any = self.given.layers[index]
        prompts, first = self._context.layout.batch_size, self.firsts[index]
        shown.keys, shown.values = (each[:prompts, :, first:] for each in (own.keys, own.values))
        shown.max_cache_len = own.max_cache_len - first
        shown.device, shown.batch_size, shown.num_heads = own.device, prompts, own.num_heads
        shown.k_head_dim, shown.v_head_dim = own.k_head_dim, own.v_head_dim
        shown.cumulative_length = own.cumulative_length - first
        shown.is_initialized = True

    def keys(self, layer: int) -> int:
        """Keys of the prompts in a layer, slots for new ones with them."""
        return self.masks[layer].shape[-1] - self.firsts[layer]

    def open(self, step: int) -> None:
        """Let the token of a step be seen, the first being 1."""
        for mask, length in self._masks.values():
            mask[..., length + step - 1] = True

    def end_step(self) -> None:
        """Let the cache that was given know of one token more."""
        if self.cache is not self.given:
            length: Any = self.given.layers[0]
            length.cumulative_length.add_(1)

    def close(self) -> None:
        """Leave the cache that was given as one that `generate` has filled by itself."""
        vars(self.given).pop("reorder_cache", None)
        if self.cache is not self.given:
            for index in range(len(self.firsts)):
                self._show(index)

    def _reorder(self, beam_idx: Tensor) -> None:
        """Let what belongs to the prompts, and branches with them, follow beams."""
        rows = self._context.layout.batch_size
        copies = range(1 + len(self.branches))
        self.cache.reorder_cache(torch.cat([beam_idx + copy * rows for copy in copies]))  # type: ignore[arg-type]
        for index in range(len(self.firsts)):
            self._show(index)


def _joined(layers: Sequence[Any], name: str, length: int) -> Tensor:
    """Keys or values of some sequences after those of others, all of one length."""
    parts = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, None)
    parts = [nn.functional.pad(each, (0, 0, length - each.shape[2], 0)) for each in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
