"""Branches: other readings of a prompt that are decoded in the same batch, to compare their logits."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine import compatibility
from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import embedded_tokens, of_tokens, padded, positions_of
from vlmfix.engine.state import Branch
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, attention_of, memory_of, new_cache


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

    def read(self, context: DecodeContext, decoder_given: Mapping[str, Any]) -> list[Tensor]:
        """Let the decoder read the branches by themselves: their last hidden states, `(batch, hidden)`.

        Args:
            decoder_given: arguments of the pass over the prompts.
        """
        return [self._read(context, branch, decoder_given) for branch in context.engine.branches]

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

    @torch.no_grad()
    def write(
        self, context: DecodeContext, branch: Branch, count: int, decoder_given: Mapping[str, Any]
    ) -> None:
        """Let the model write tokens after a branch, before the prompts, each the likeliest; `branch.watch`
        sees all of them but the last.

        Args:
            decoder_given: arguments of the pass over the prompts.

        Raises:
            UnsupportedError: the decoder reads more of a token than its embedding, or forgets tokens.
        """
        assert context.modules is not None
        assert context.embed_tokens is not None
        embeddings, end_tokens = decoder_given["inputs_embeds"], context.engine.end_tokens
        if embedded_tokens(decoder_given, embeddings):
            raise UnsupportedError(
                "the text decoder of this model reads more of each token than its embedding, so that nothing "
                "can be written ahead; use a method of another kind"
            )
        length = branch.inputs_embeds.shape[1]
        compatibility.check_window(self._decoder, memory_of(self._decoder).window, length, count)
        branch.cache = new_cache(self._decoder)
        branch.alive = torch.ones_like(branch.real_tokens[:, 0])
        states = self._read(context, branch, decoder_given)
        positions = branch.positions(
            positions_of(decoder_given, context.layout), count, context.engine.first_position
        )
        for written in range(1, count):
            tokens = context.modules.output_logits(states).argmax(dim=-1)
            if end_tokens is not None:
                branch.alive = branch.alive & ~torch.isin(tokens, end_tokens.to(tokens.device))
            given = {
                "inputs_embeds": context.embed_tokens(tokens[:, None]),
                "position_ids": positions[..., length + written - 1 : length + written],
                "attention_mask": self._padding_of(branch, written),
                "use_cache": True,
            }
            context.engine.active_branch = branch
            try:
                output = self._decoder(**with_cache(self._decoder, given, branch.cache))
            finally:
                context.engine.active_branch = None
            states = output.last_hidden_state[:, -1]
        branch.cache, branch.alive = None, None

    def _read(self, context: DecodeContext, branch: Branch, decoder_given: Mapping[str, Any]) -> Tensor:
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
        given["position_ids"] = positions[..., -read.shape[1] :]
        context.engine.active_branch = branch
        try:
            states: Tensor = self._decoder(
                inputs_embeds=read,
                attention_mask=self._padding_of(branch, context.step),
                use_cache=branch.cache is not None,
                **with_cache(self._decoder, given, branch.cache),
            ).last_hidden_state
        finally:
            context.engine.active_branch = None
        return states[:, -1]


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
