"""The passes of the text decoder: auxiliary prompts ride along, branches are read, the last row is read
again."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from vlmfix.engine import compatibility
from vlmfix.engine.branches import BranchReader, follow_beams, join
from vlmfix.engine.buffered_cache import give_room
from vlmfix.engine.caches import read_cache, record, stop_recording, with_cache, write_cache
from vlmfix.engine.capabilities import (
    AddsAuxiliaryPrompt,
    PrunesTokens,
    ReadsAhead,
    ReadsEarlyExits,
    ReadsFinalStates,
    ReadsLastRowAgain,
    RemembersSequences,
    UsesOutputHead,
    WritesAhead,
)
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import (
    copied,
    last_alone,
    positions_of,
    with_auxiliary_prompts,
)
from vlmfix.engine.in_place import called
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.state import Branch
from vlmfix.engine.static_step import StaticSteps
from vlmfix.engine.token_pruning import PromptPruning, leave_out
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import memory_of, new_cache


class Attached(Protocol):
    """What hangs on a model, as the hooks around its parts see it."""

    @property
    def context(self) -> DecodeContext | None:
        """The run in progress; None: there is none."""

    @property
    def methods(self) -> tuple[MethodHooks, ...]:
        """Those that act."""

    @property
    def static(self) -> StaticSteps:
        """Decode steps on a static cache."""

    @property
    def copies(self) -> int:
        """Sequences of each prompt, which the text decoder reads, and not yet the model."""


class ForwardHooks:
    """Hooks around the text decoder and its layers.

    Args:
        attachment: whose methods act and whose run is read.
    """

    def __init__(self, attachment: Attached, decoder: Any) -> None:
        self.attachment = attachment
        self.decoder = decoder
        self._given: dict[str, Any] = {}
        self._pruning = PromptPruning(self.decoder)
        memory = memory_of(decoder)
        self._has_state, self._window = memory.has_state, memory.window
        self._reader = BranchReader(decoder, has_state=memory.has_state)
        self._is_reading_again = False

    def before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Append auxiliary prompts in the prefill; keep positions right after tokens that never entered."""
        context, methods = self.attachment.context, self.attachment.methods
        if (
            context is None
            or context.engine.active_branch is not None
            or context.engine.candidates is not None
        ):
            return None
        if kwargs.get("inputs_embeds") is None:
            return None
        copies = self.attachment.copies
        if context.is_prefill and copies > 1:
            kwargs = copied(kwargs, copies)
        embeddings = kwargs["inputs_embeds"]
        if context.is_prefill:
            if context.engine.static is not None:
                kwargs = with_cache(self.decoder, kwargs, new_cache(self.decoder))
            kwargs = self._recording(kwargs)
            self._given = dict(kwargs)
            context.layout.takes_over(kwargs.get("attention_mask"))
            context.engine.first_position = _first_position(kwargs, context.layout)
            for method in methods:
                if isinstance(method, ReadsAhead):
                    read = partial(self._reader.read_layers, context, decoder_given=self._given)
                    method.read_ahead(context, embeddings, self._given, read)
                if isinstance(method, WritesAhead):
                    write = partial(self._write, context)
                    method.write_ahead(context, embeddings, self._given, write)
            context.auxiliary_prompts = {
                method: auxiliary_prompt
                for method in methods
                if isinstance(method, AddsAuxiliaryPrompt)
                and (auxiliary_prompt := method.auxiliary_prompt(context, embeddings)) is not None
            }
            context.engine.branches = [
                branch for method in methods for branch in method.branches(context, embeddings, self._given)
            ]
            for branch in context.engine.branches:
                length = branch.inputs_embeds.shape[1]
                compatibility.check_window(
                    self.decoder, self._window, length, context.engine.planned, "a branch beside the prompt"
                )
            if self._has_state and any(branch.selection for branch in context.engine.branches):
                raise UnsupportedError(
                    f"layers of {type(self.decoder).__name__} keep a state that runs over all tokens, from "
                    "which a branch cannot leave some out; use a method of another kind"
                )
        elif context.engine.branches and not self._is_reading_again:
            self._given = dict(kwargs)
        if context.is_prefill:
            # Not the largest: the times of a video may lie far after the text that follows it.
            context.engine.next_position = (
                positions_of(kwargs, context.layout)[..., context.layout.length - 1] + 1
            )
        prunes = any(isinstance(method, PrunesTokens) for method in methods)
        if not context.auxiliary_prompts and not prunes and not context.engine.branches:
            return args, kwargs
        kwargs = dict(kwargs)
        if prunes:
            self._pruning.take_over_injection(kwargs)
            if (
                context.step
                and context.pruning_stages
                and context.pruning_stages[0].first_layer == 0
                and embeddings.shape[1] == 1
            ):
                kwargs["position_ids"] = context.position_of(context.step - 1)
        if context.auxiliary_prompts:
            kwargs = with_auxiliary_prompts(context, kwargs)
        if context.engine.branches and not context.is_prefill and self._reader.is_joined(context):
            kwargs = join(context, self.decoder, kwargs)
        return args, kwargs

    def _recording(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments with a cache from which the last tokens can be taken back, where layers have a window and
        methods do that."""
        takes_back = any(
            isinstance(method, AddsAuxiliaryPrompt | ReadsLastRowAgain) for method in self.attachment.methods
        )
        if self._window is None or not takes_back or not kwargs.get("use_cache"):
            return kwargs
        cache = read_cache(kwargs)
        if cache is None:
            cache = new_cache(self.decoder)
            kwargs = with_cache(self.decoder, kwargs, cache)
        record(cache)
        return kwargs

    def _write(self, context: DecodeContext, branch: Branch, wanted: Tensor, limit: int) -> list[list[int]]:
        """What the model writes after a branch, see `WritesAhead`."""
        length = branch.inputs_embeds.shape[1]
        what = "a branch that the model answers first"
        compatibility.check_window(self.decoder, self._window, length, limit, what)
        return self._reader.write(context, branch, self._given, wanted, limit)

    def after_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """End a pass; put after the prompts what else the model shall turn into logits."""
        context = self.attachment.context
        if context is None or context.engine.active_branch is not None or self._is_reading_again:
            return None
        if context.engine.candidates is None:
            self._check_cache(context, kwargs, output)
        readers = [each for each in self.attachment.methods if isinstance(each, ReadsFinalStates)]
        if context.is_prefill:
            length = context.layout_at(context.num_layers - 1).length
            for reader in readers:
                reader.see_final_states(context, output.last_hidden_state[:, :length])
            self._end_prefill(context, output)
        rows = []
        if context.engine.branches:
            if context.step and self._reader.is_joined(context):
                write_cache(output, read_cache(self._given))
            else:
                keeps_prefix = all(method.keeps_prefix for method in self.attachment.methods)
                rows = self._reader.read(context, self._given, keeps_prefix=keeps_prefix)
        self._given = {}
        newest = output.last_hidden_state[: context.layout.batch_size, -1]
        by_head: Any = UsesOutputHead  # of a static cache, exits go through the head after the step, too
        if context.engine.static is not None:
            by_head = UsesOutputHead | ReadsEarlyExits
        if context.step == 0 and any(isinstance(each, by_head) for each in self.attachment.methods):
            context.engine.first_state = newest
        for method in self.attachment.methods:
            if isinstance(method, ReadsEarlyExits):
                rows += method.extra_hidden_states(context, newest)
        if rows:
            _append_rows(context, output, rows)
        if context.engine.static is not None:
            self.attachment.static.begin(context, output)
        elif context.step == 0 and context.engine.candidates is None:
            give_room(context.engine.cache)
        return output

    def _check_cache(self, context: DecodeContext, kwargs: dict[str, Any], output: Any) -> None:
        """Refuse a pass whose tokens went to another cache than the one that was given, or to none."""
        given, used = read_cache(kwargs), read_cache(output)
        read = context.layout_at(0).length + context.auxiliary_length + context.step
        wanted = kwargs.get("use_cache") is True
        if (given is not None and used is not given) or (used is None and wanted):
            fault = "did not use the cache that it was given" if given is not None else "returned no cache"
        elif used is not None and used.get_seq_length() != read:
            fault = f"left {used.get_seq_length()} tokens in its cache where {read} were read"
        else:
            return
        raise UnsupportedError(
            f"{type(self.decoder).__name__} of transformers {transformers.__version__} {fault}, so that "
            "methods could not tell a prompt from a decode step; use a version of transformers that vlmfix "
            "was tested with"
        )

    def _end_prefill(self, context: DecodeContext, output: Any) -> None:
        """End the first pass over the prompt: auxiliary prompts leave, and the last row is read again if
        asked."""
        context.engine.cache = cache = read_cache(output)  # the decoder may have made it
        if context.auxiliary_prompts:
            extra = context.auxiliary_length
            _replace_rows(output, lambda states: states[:, :-extra])
            if cache is not None:
                cache.crop(-extra)
            context.auxiliary_prompts = {}
        context.is_prefill = False
        if any(
            isinstance(method, ReadsLastRowAgain)
            and (method.gate is None or method.gate.first > 0)
            and method.reads_last_row_again(context)
            for method in self.attachment.methods
        ):
            again = self._read_last_row_again(cache)
            last = [states[:, -1:] for states in _states(again)]
            _replace_rows(output, lambda states: torch.cat([states[:, :-1], last.pop(0)], dim=1))
        if cache is not None and self._window is not None:
            stop_recording(cache)
        for branch in context.engine.branches:
            branch.cache = None if cache is None else new_cache(self.decoder)
        follows = context.engine.gates.follows_beams or any(
            isinstance(method, RemembersSequences) for method in self.attachment.methods
        )
        if cache is not None and (context.engine.branches or follows):
            follow_beams(context, cache)
        context.position_embeddings, context.inputs, context.engine.encoded = None, {}, None
        for stage in context.pruning_stages:
            stage.position_embeddings = None
            stage.gathered.clear()

    def before_layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let methods see what enters a layer, in the prompt all of it, and leave out what they prune."""
        context = self.attachment.context
        if context is None or context.engine.active_branch is not None:
            return None
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if context.engine.prefix is not None and not context.engine.prefix.is_read:
            if any(method.sees_layers for method in self.attachment.methods):
                context.engine.prefix.hidden_states.append(hidden_states)
            return None
        is_decode = context.reads_on(hidden_states.shape[1])
        if is_decode and context.pruning_stage_at(index) is None:
            _tap(context, index, hidden_states)
            return None
        kwargs = dict(kwargs)
        if not is_decode:
            hidden_states = self._pruning.inject(context, index, hidden_states)
        with torch.no_grad():
            if context.is_prefill:
                self._pruning.prune(context, self.attachment.methods, index, layer, hidden_states, kwargs)
            stage = context.pruning_stage_at(index)
            if stage is not None:
                if not is_decode and stage.first_layer == index:
                    hidden_states = leave_out(context, stage, hidden_states)
                self._pruning.set_positions(context, stage, index, hidden_states, kwargs)
            if context.is_prefill:
                context.position_embeddings = kwargs.get("position_embeddings")
                prompt = self._prompt(context, index, hidden_states)
                for method in self.attachment.methods:
                    called(method, "enter_layer", prompt, partial(method.enter_layer, context, index))
        _tap(context, index, hidden_states)
        if args:
            return (hidden_states, *self._pruning.kept(context, index, args[1:])), kwargs
        return args, kwargs | {"hidden_states": hidden_states}

    def _prompt(self, context: DecodeContext, index: int, hidden_states: Tensor) -> Tensor:
        """What enters a layer at the tokens of the prompt that are present in it."""
        if context.engine.prefix is not None and context.engine.prefix.hidden_states:
            prefixes = context.engine.prefix.spread(context.engine.prefix.hidden_states[index])
            return torch.cat([prefixes, hidden_states], dim=1)
        return hidden_states[:, : context.layout_at(index).length]

    def _read_last_row_again(self, cache: Any) -> Any:
        """Run the last prompt token once more, when the prompt has been seen; without a cache, all of it."""
        given = dict(self._given)
        if cache is not None:
            self._take_back_last_row(cache)
            given = with_cache(self.decoder, given, cache)
            context = self.attachment.context
            assert context is not None
            positions = given.get("position_ids")
            if positions is None:
                positions = torch.tensor([[context.layout.length - 1]], device=given["inputs_embeds"].device)
            given = last_alone(given, positions)
        self._is_reading_again = True
        try:
            return self.decoder(**given)
        finally:
            self._is_reading_again = False

    def _take_back_last_row(self, cache: DynamicCache) -> None:
        """Leave a cache as it was before the last prompt token; where layers have a state, by reading again
        what comes before, in which no method edits."""
        if not self._has_state:
            cache.crop(-1)
            return
        given, before = dict(self._given), slice(None, -1)
        context = self.attachment.context
        assert context is not None
        layout = context.layout
        seen = None if layout.seen is None else layout.seen[:, before, before]
        embeddings = given["inputs_embeds"][:, before]
        context.engine.active_branch = Branch(embeddings, layout.real_tokens[:, before], seen=seen)
        mask = given.get("attention_mask")
        given |= {
            "inputs_embeds": embeddings,
            "position_ids": positions_of(given, layout)[..., before],
            "attention_mask": mask[:, before] if isinstance(mask, Tensor) and mask.ndim == 2 else None,
        }
        fresh = new_cache(self.decoder)
        try:
            self.decoder(**with_cache(self.decoder, given, fresh))
        finally:
            context.engine.active_branch = None
        cache.layers[:] = fresh.layers


def _first_position(kwargs: dict[str, Any], layout: PromptLayout) -> Tensor | int:
    """Position of the first token of a prompt, `(batch, 1)`: PaliGemma counts from 1."""
    positions = kwargs.get("position_ids")
    if positions is None or positions.shape[-2] != layout.batch_size:
        return 0
    given: Tensor = positions if positions.ndim == 2 else positions[-1]
    return given.gather(1, layout.real_tokens.int().argmax(dim=1, keepdim=True).to(given.device))


def _tap(context: DecodeContext, index: int, hidden_states: Tensor) -> None:
    """Keep what enters a tapped layer at the newest position; a copy, to let go of the rest."""
    if index in context.engine.tapped_layers:
        newest = hidden_states.shape[1] - context.auxiliary_length - 1
        context.early_exits[index] = hidden_states[: context.layout.batch_size, newest].clone()


def _append_rows(context: DecodeContext, output: Any, rows: list[Tensor]) -> None:
    """Put hidden states `(batch, hidden)` after the last ones of the prompts, at the newest position."""
    states = output.last_hidden_state
    if context.engine.wants_last_logits:
        states = states[:, -1:]
    added = torch.cat([each.to(states) for each in rows])[:, None]
    padded = nn.functional.pad(added, (0, 0, states.shape[1] - 1, 0))
    output.last_hidden_state = torch.cat([states, padded])


def _states(output: Any) -> list[Tensor]:
    """The hidden states that the decoder returns: the last, and those of all layers where asked for."""
    return [output.last_hidden_state, *(getattr(output, "hidden_states", None) or ())]


def _replace_rows(output: Any, edit: Any) -> None:
    output.last_hidden_state = edit(output.last_hidden_state)
    if getattr(output, "hidden_states", None):
        output.hidden_states = tuple(edit(states) for states in output.hidden_states)
