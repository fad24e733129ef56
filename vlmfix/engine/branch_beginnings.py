"""Branches that begin like their prompts, or like each other: what was read already is not read again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine.beginnings import WholeSequences, fill, keeps_all_tokens
from vlmfix.engine.caches import with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import Branch, Prefix
from vlmfix.models.structure import new_cache

# A smaller share of the tokens is not worth it: kernels compute in full what goes on from other tokens, and
# half of what begins with its own.
_WORTH = 0.25


def passes(
    context: DecodeContext,
    decoder: nn.Module,
    branch: Branch,
    kwargs: dict[str, Any],
    prompts: WholeSequences,
    *,
    keeps_prefix: bool,
) -> Iterator[tuple[Branch, dict[str, Any]]]:
    """The passes that read a branch, the last of which ends with its last tokens: what takes the place of the
    branch in each, and the arguments of the decoder.

    A branch goes on from the keys and values of its prompt, as far as both begin alike. Where prompts of the
    batch begin alike, and their branches too, the beginnings of these are read in a pass before. Of the two
    ways, and of reading all, it is the one with the fewest tokens; embeddings are compared by value.

    Args:
        branch: to be read for the first time.
        kwargs: of the decoder, for a pass over all of it.
        prompts: as they were read.
        keeps_prefix: see `MethodHooks.keeps_prefix`; of all methods.
    """
    own = WholeSequences(kwargs, branch.real_tokens, kwargs["position_ids"])
    is_plain = branch.selection is None and branch.edit_weights is None and branch.seen is None
    shared = None
    if branch.cache is not None and is_plain and own.comes_apart and keeps_all_tokens(branch.cache):
        shared = _shared(context, own, prompts, keeps_prefix=keeps_prefix)
    if branch.cache is None or shared is None:
        yield branch, kwargs
        return
    prefix, source = shared
    if source is None:
        source = new_cache(decoder)
        given = own.beginnings(prefix)
        yield Branch(given["inputs_embeds"], prefix.layout.real_tokens), with_cache(decoder, given, source)
    fill(branch.cache, prefix, source.layers)
    yield branch, with_cache(decoder, own.rest(prefix), branch.cache)


def _shared(
    context: DecodeContext, own: WholeSequences, prompts: WholeSequences, *, keeps_prefix: bool
) -> tuple[Prefix, DynamicCache | None] | None:
    """What the sequences of a branch begin with that need not be read with each of them, and the cache that
    holds it, or None where it is to be read once; None in all: nothing. Reads the device once."""
    batch, length = own.real_tokens.shape
    starts, cache, known = own.starts, context.engine.cache, context.engine.prefix
    of_prompts = of_each_other = torch.zeros_like(starts[0])
    if keeps_prefix and keeps_all_tokens(cache) and prompts.comes_apart and context.layout.seen is None:
        alike = own.common_lengths(prompts, torch.arange(batch, device=starts.device))
        of_prompts = (starts + torch.minimum(alike, _before_last_image(context.layout))).min()
    if known is not None:
        of_each_other = (starts + own.common_lengths(own, known.first_rows[known.owner])).min()
    # The state of the last token is wanted, so that each sequence reads it.
    ends = torch.stack([of_prompts, of_each_other, starts.min()]).clamp_max(length - 1)
    from_prompts, read_once, first = ends.tolist()
    tokens_from_prompts = batch * (length - from_prompts)
    tokens_read_once = batch * (length - read_once)
    if known is not None:
        tokens_read_once += len(known.first_rows) * max(0, read_once - first)
    if min(tokens_from_prompts, tokens_read_once) > (1 - _WORTH) * batch * length:
        return None
    if known is None or tokens_from_prompts <= tokens_read_once:
        return _of_prompts(own, prompts, context.layout, from_prompts), cache
    return _of_each_other(own, known, read_once, read_once - first), None


def _before_last_image(layout: PromptLayout) -> Tensor:
    """How many tokens of each prompt stand before its last image token, `(batch,)`; there no method edits
    that keeps the beginning."""
    ahead = layout.image_tokens.flip(1).cumsum(dim=1).flip(1) > 0
    return ((ahead & layout.real_tokens).sum(dim=1) - 1).clamp_min(0)


def _of_prompts(own: WholeSequences, prompts: WholeSequences, layout: PromptLayout, end: int) -> Prefix:
    """Beginnings that stand in the cache of the prompts.

    Args:
        end: the first column of the branch that is read.
    """
    rows = torch.arange(len(own.starts), device=own.starts.device)
    tokens = torch.arange(end, device=rows.device) - own.starts[:, None]
    places = (tokens + prompts.starts[:, None]).clamp(0, layout.length - 1)
    return Prefix(layout, rows, rows, places)


def _of_each_other(own: WholeSequences, known: Prefix, end: int, longest: int) -> Prefix:
    """Beginnings of the branch that are to be read, one for all prompts that begin alike.

    Args:
        known: of the prompts.
        end: the first column of the branch that is read with each sequence.
        longest: tokens of the longest beginning.
    """
    first_rows, owner = known.first_rows, known.owner
    least_padded = torch.full_like(first_rows, end).scatter_reduce(0, owner, own.starts, "amin")
    lengths = end - least_padded
    starts = own.starts[first_rows, None]
    columns = starts + lengths[:, None] - longest + torch.arange(longest, device=starts.device)
    real_tokens = columns >= starts
    layout = PromptLayout(torch.zeros_like(real_tokens), real_tokens, columns.clamp_min(0))
    tokens = torch.arange(end, device=starts.device) - own.starts[:, None]
    places = (tokens + longest - lengths[owner, None]).clamp(0, longest - 1)
    return Prefix(layout, first_rows, owner, places)
