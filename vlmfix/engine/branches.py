"""Branches: other readings of a prompt that are decoded in the same batch, to compare their logits."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine.beginnings import WholeSequences
from vlmfix.engine.branch_beginnings import passes
from vlmfix.engine.buffered_cache import give_room
from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import embedded_tokens, of_tokens, one_of_each, padded, positions_of
from vlmfix.engine.state import Branch
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, attention_of, new_cache


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


@functools.cache
def hands_on_keys(forward: Callable[..., Any]) -> bool:
    """Whether the forward of an attention class gives what its cache returns to the attention function as it
    is, and not something that it makes of it, as far as its source tells."""
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):
        return False
    updated = re.search(r"(\w+), (\w+) = \w+\.update\((.*?)\)\n", source, flags=re.DOTALL)
    if updated is None:
        return False
    between, call, _ = source[updated.end() :].partition("attention_interface(")
    return bool(call) and not re.search(rf"\b({updated[1]}|{updated[2]})\b", between)


class BranchReader:
    """Reads branches in passes of their own.

    Args:
        decoder: the text decoder.
        has_state: whether some of its layers keep a state.
    """

    def __init__(self, decoder: Any, *, has_state: bool) -> None:
        self._decoder = decoder
        self._has_state = has_state
        self._comes_apart = not has_state and all(
            hands_on_keys(type(attention_of(decoder, layer)).forward) for layer in attention_layers(decoder)
        )

    def is_joined(self, context: DecodeContext) -> bool:
        """Whether branches are decoded in one pass with the prompts; states, and keys that attention makes of
        what the cache holds, do not come apart."""
        return self._comes_apart and all(
            branch.fused and branch.cache is not None for branch in context.engine.branches
        )

    def _padding_of(self, branch: Branch, generated: int) -> Tensor | None:
        """The 2-D mask of a branch; None where attention, which knows it already, is all that needs it."""
        return (
            nn.functional.pad(branch.real_tokens.long(), (0, generated), value=1) if self._has_state else None
        )

    def read(
        self, context: DecodeContext, decoder_given: Mapping[str, Any], *, keeps_prefix: bool
    ) -> list[Tensor]:
        """Let the decoder read the branches by themselves: their last hidden states, `(batch, hidden)`.

        Args:
            decoder_given: arguments of the pass over the prompts.
            keeps_prefix: see `MethodHooks.keeps_prefix`; of all methods.
        """
        return [
            self._read(context, branch, decoder_given, keeps_prefix=keeps_prefix)
            for branch in context.engine.branches
        ]

    def read_layers(
        self, context: DecodeContext, branch: Branch, decoder_given: Mapping[str, Any]
    ) -> list[Tensor]:
        """What leaves each layer at the last token of a branch that is read once, before the prompts,
        `(batch, hidden)` each.

        Args:
            decoder_given: arguments of the pass over the prompts.
        """
        seen: list[Tensor] = []

        def see(module: nn.Module, args: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[:, -1])

        with ExitStack() as undo:
            for layer in self._decoder.layers:
                undo.callback(layer.register_forward_hook(see).remove)
            self._read(context, branch, decoder_given)
        return seen

    def write(
        self,
        context: DecodeContext,
        branch: Branch,
        decoder_given: Mapping[str, Any],
        wanted: Tensor,
        limit: int,
    ) -> list[list[int]]:
        """What the model writes greedily after a branch, before the prompts are read; without the end token.
        `Branch.watch` sees all of it but the last token. Reads the device once a token.

        Args:
            decoder_given: arguments of the pass over the prompts.
            wanted: sequences that write, `(batch,)` bool.
            limit: tokens of each at most.

        Raises:
            UnsupportedError: the decoder reads more of a token than its embedding.
        """
        assert context.modules is not None
        assert context.embed_tokens is not None
        if embedded_tokens(decoder_given, decoder_given["inputs_embeds"]):
            raise UnsupportedError(
                "the text decoder of this model reads more of each token than its embedding, so that nothing "
                "can be written ahead; use a method of another kind"
            )
        like, cache = positions_of(decoder_given, context.layout), new_cache(self._decoder)
        first = context.first_position
        if context.copies > 1:  # they would all write the same
            branch, wanted = _one_of_each(branch, context.copies), wanted[:: context.copies]
            first = first[:: context.copies] if isinstance(first, Tensor) else first
        given, read = dict(branch.decoder_inputs), branch.inputs_embeds
        newest = {
            name: value.new_zeros(len(value), 1, *value.shape[2:])
            for name, value in of_tokens(given, read).items()
        }
        ends = context.engine.end_tokens
        writes = wanted.to(read.device)
        tokens: list[Tensor] = []
        context.engine.active_branch = branch
        try:
            with torch.no_grad():
                for step in range(limit):
                    branch.alive = writes if step else None
                    given["position_ids"] = branch.positions(like, step, first)
                    given["position_ids"] = given["position_ids"][..., -read.shape[1] :]
                    states: Tensor = self._decoder(
                        inputs_embeds=read,
                        attention_mask=self._padding_of(branch, step),
                        use_cache=True,
                        **with_cache(self._decoder, given, cache),
                    ).last_hidden_state
                    token = context.modules.output_logits(states[:, -1]).argmax(dim=-1).to(writes.device)
                    if ends is not None:
                        writes = writes & ~torch.isin(token, ends.to(token.device))
                    if not bool(writes.any()):
                        break
                    tokens.append(token.masked_fill(~writes, -1))
                    given, read = dict(newest), context.embed_tokens(token)[:, None].to(read)
        finally:
            context.engine.active_branch = None
        rows = torch.stack(tokens, dim=1).tolist() if tokens else [[] for _ in range(len(writes))]
        return [[token for token in row if token >= 0] for row in rows for _ in range(context.copies)]

    def _read(
        self,
        context: DecodeContext,
        branch: Branch,
        decoder_given: Mapping[str, Any],
        *,
        keeps_prefix: bool = False,
    ) -> Tensor:
        embeddings = decoder_given["inputs_embeds"]
        first = context.step == 0
        if first and branch.late is not None:
            branch.late(branch)
        new = embeddings[:, context.layout.length :] if branch.cache is None else embeddings[:, -1:]
        whole = first or branch.cache is None
        read = torch.cat([branch.inputs_embeds, new], dim=1) if branch.cache is None else new
        if first:
            read = branch.inputs_embeds
        newest = {
            name: value[:, -new.shape[1] :] for name, value in of_tokens(decoder_given, embeddings).items()
        }
        given = dict(branch.decoder_inputs) if whole else newest
        if whole and read.shape[1] > branch.inputs_embeds.shape[1]:
            more = read.shape[1] - branch.inputs_embeds.shape[1]
            given = padded(given, branch.inputs_embeds, more)
            for name in newest.keys() & given.keys():
                given[name] = torch.cat([given[name][:, :-more], newest[name]], dim=1)
        positions = branch.positions(
            positions_of(decoder_given, context.layout), context.step, context.first_position
        )
        given |= {
            "position_ids": positions[..., -read.shape[1] :],
            "inputs_embeds": read,
            "attention_mask": self._padding_of(branch, context.step),
            "use_cache": branch.cache is not None,
        }
        given = with_cache(self._decoder, given, branch.cache)
        prompts = WholeSequences(
            dict(decoder_given), context.layout.real_tokens, positions_of(decoder_given, context.layout)
        )
        reading = (
            passes(context, self._decoder, branch, given, prompts, keeps_prefix=keeps_prefix)
            if first
            else [(branch, given)]
        )
        try:
            for active, arguments in reading:
                context.engine.active_branch = active
                states: Tensor = self._decoder(**arguments).last_hidden_state
        finally:
            context.engine.active_branch = None
        if first:
            give_room(branch.cache)
        return states[:, -1]


def _one_of_each(branch: Branch, copies: int) -> Branch:
    """A branch of one of so many equal sequences of each prompt."""
    positions = branch.position_ids
    if positions is not None and positions.shape[-2] > 1:
        positions = positions[..., ::copies, :]
    return Branch(
        branch.inputs_embeds[::copies],
        branch.real_tokens[::copies],
        positions,
        one_of_each(branch.decoder_inputs, branch.inputs_embeds, copies),
        seen=None if branch.seen is None else branch.seen[::copies],
        watch=None if branch.watch is None else partial(_watched_by_all, branch.watch, copies),
    )


def _watched_by_all(
    watch: Callable[[int, Tensor, Tensor], None], copies: int, layer: int, weights: Tensor, alive: Tensor
) -> None:
    watch(layer, weights.repeat_interleave(copies, dim=0), alive.repeat_interleave(copies, dim=0))


def follow_beams(context: DecodeContext, cache: DynamicCache) -> None:
    """Let the caches of the branches, and what is kept of sequences, follow the cache of the prompts when
    beam search reorders it."""
    reorder = cache.reorder_cache

    def reordered(beam_idx: torch.LongTensor) -> None:
        reorder(beam_idx)
        for branch in context.engine.branches:
            _cache(branch).reorder_cache(beam_idx)
        context.follow(beam_idx)

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
