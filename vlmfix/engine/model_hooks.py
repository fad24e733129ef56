"""The passes of a whole model: their phase is learnt, their logits are edited, their steps counted."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StaticCache

from vlmfix.engine import compatibility, kernels
from vlmfix.engine.caches import named_arguments, read_cache
from vlmfix.engine.call import Call
from vlmfix.engine.capabilities import ChoosesTokens, ReadsEarlyExits, SeesLogits, UsesOutputHead
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gate_formulas import blend_logits
from vlmfix.engine.in_place import called
from vlmfix.engine.kl import differ
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.outside_passes import OutsidePasses
from vlmfix.engine.phases import is_prompt, sources
from vlmfix.engine.scores import Received
from vlmfix.engine.static_step import StaticSteps
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, memory_of, text_decoder


class Attached(Protocol):
    """What hangs on a model, as the hooks around the whole of it see it."""

    call: Call
    outside: OutsidePasses
    static: StaticSteps

    @property
    def context(self) -> DecodeContext | None:
        """The run in progress; None: there is none."""

    @property
    def methods(self) -> tuple[MethodHooks, ...]:
        """Those that act."""

    def begin_run(self, input_ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        """Begin a run with a pass over prompts, of these arguments."""


class ModelHooks:
    """Hooks around a model.

    Args:
        attachment: whose methods act and whose run is read.
        model: with its decoder.
    """

    def __init__(self, attachment: Attached, model: PreTrainedModel) -> None:
        self.attachment = attachment
        self.model = model
        self.decoder: Any = text_decoder(model)
        self._attending = attention_layers(self.decoder)
        self._window = memory_of(self.decoder).window
        self._wants_tuple = False

    def before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Begin a pass: learn its phase, and the layout of a prompt that is new."""
        named = named_arguments(type(self.model).forward, args, kwargs)
        cache = read_cache(named)
        if not self._is_own_call and not self._begin_pass(cache):
            return None
        static = self.attachment.static
        if static.expects(cache):
            context = self.attachment.context
            assert context is not None
            _next_step(context, self.attachment.call, named.get("input_ids"), has_cache=True)
            return (), static.step_inputs(context, named)
        compatibility.check_pass(self.model)
        is_static = type(cache) is StaticCache and self.attachment.call.generates
        if is_static:
            named = static.read_prompts(named)
        self._learn(named, cache)
        self._wants_tuple = named.get("return_dict", self.model.config.return_dict) is False
        return ((), {**named, "return_dict": True}) if self._wants_tuple or is_static else None

    @property
    def _is_own_call(self) -> bool:
        return self.attachment.call.generates and self.attachment.call.thread == threading.get_ident()

    def _begin_pass(self, cache: Any) -> bool:
        """Begin a pass outside `generate`; whether it is one of the block."""
        if not self.attachment.outside.begin(cache):
            return False
        self.attachment.call.thread = threading.get_ident()
        return True

    def end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """End a pass outside `generate`, whether or not it came to its end."""
        if self.attachment.outside.end():
            self.attachment.call.thread = None

    def _learn(self, kwargs: dict[str, Any], cache: Any) -> None:
        """Learn the phase of a pass from its arguments by name."""
        input_ids = kwargs.get("input_ids")
        tokens = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if tokens is None:
            return  # the model itself says best what it misses
        call, context = self.attachment.call, self.attachment.context
        if context is not None and context.engine.candidates is not None:
            return  # whoever set it knows the phase
        batch, queries = tokens.shape[:2]
        if not call.generates or type(cache) is not StaticCache:
            compatibility.check_cache(cache)
        if is_prompt(queries, cache, context, in_generate=call.generates):
            self.attachment.begin_run(input_ids, kwargs)
            context = self.attachment.context
        elif context is not None:
            _next_step(context, call, input_ids, has_cache=cache is not None)
        if context is None:
            return
        if context.is_prefill:
            batch *= call.copies
        if batch != context.layout.batch_size:
            raise UnsupportedError(
                f"the batch changed from {context.layout.batch_size} to {batch} sequences during "
                "generation; methods need a constant batch"
            )
        compatibility.check_window(self.decoder, self._window, context.layout.length, context.step + 1)
        context.engine.static = cache if type(cache) is StaticCache else None
        kept = kwargs.get("logits_to_keep")
        context.engine.wants_last_logits = isinstance(kept, int) and kept == 1

    def after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Let methods edit the logits, which only the prompts keep, and count the step."""
        call, context = self.attachment.call, self.attachment.context
        if call.thread != threading.get_ident():
            return None
        self._check_seen(call.layers_seen)
        if context is not None and context.step and context.engine.static is not None:
            self.attachment.static.end_pass(context, output)
        if context is not None:
            _edit_logits(context, self.attachment.methods, call.scores, output)
            _end_step(context, self.attachment.methods)
        return output.to_tuple() if self._wants_tuple else output

    def _check_seen(self, layers: set[int]) -> None:
        missed = set(self._attending) - layers
        if missed and self.decoder.config._attn_implementation != kernels.NAME:
            raise UnsupportedError(
                "the attention implementation of the model was changed inside the block to "
                f"{self.decoder.config._attn_implementation!r}, where methods do not see it; set it before "
                "the block"
            )
        if missed:
            raise UnsupportedError(
                f"{type(self.decoder).__name__} did not call the attention registry in layers "
                f"{sorted(missed)}, so that no method can see its attention"
            )


def _next_step(context: DecodeContext, call: Call, input_ids: Tensor | None, *, has_cache: bool) -> None:
    context.step += 1
    context.engine.stock_rows = context.layout.batch_size if has_cache else sys.maxsize
    if call.end_tokens is not None and input_ids is not None:
        context.alive &= ~torch.isin(input_ids[:, -1], call.end_tokens.to(input_ids.device))
    if not has_cache and input_ids is not None:
        before = context.prompt_ids if context.step == 1 else context.engine.read
        if context.memory and before is not None:  # no cache tells how beams go on, but their tokens do
            context.follow(sources(before, input_ids[:, :-1], context.copies))
        context.engine.read = input_ids
    gates = context.engine.gates
    gates.read(None if input_ids is None else input_ids[:, -1], context.step)
    if gates.methods and not has_cache:
        kind = "act_on" if gates.methods[0].gate is None else "gate"
        raise UnsupportedError(
            f"the {kind} of {type(gates.methods[0]).__name__} is for the newest token alone, and "
            "without a cache the answer so far is read anew in every step; use use_cache=True"
        )


def _edit_logits(
    context: DecodeContext, methods: Sequence[MethodHooks], scores: Tensor | None, output: Any
) -> None:
    """Put what methods make of the newest logits, or of the scores in their place, into an output."""
    owners = [method for method in methods if method.owns_logits]
    watching = [method for method in methods if isinstance(method, SeesLogits)]
    gates = context.engine.gates
    _check_head(context, methods, output)
    if not owners and not watching and not gates.methods:
        return
    rows = context.layout.batch_size
    last = output.logits[:, -1]
    own, others = last[:rows].float(), last[rows:].float().split(rows) if len(last) > rows else ()
    for each in watching:
        each.see_logits(context, own)
    openings = gates.see(own, others, context.step) if gates.methods else {}
    received = None
    if scores is not None:
        received = Received.of(scores, last[:rows], type(owners[-1]).__name__)
        own = received.logits
    for method in owners:
        edit = functools.partial(method.edit_logits, context, branches=others)
        edited = called(method, "edit_logits", own, edit)
        if method.is_gated:
            edited = blend_logits(own, edited, openings[method])
            gates.note(method, openings[method])
        if edited is not own:
            context.count(method, None, differ(own, edited).long(), 1)
        context.counts_of(method).divergence.compare(own, edited)
        own = edited
    if received is None:  # float32, as `generate` reads them: bfloat16 would lose the order
        output.logits = torch.cat([output.logits[:rows, :-1].float(), own[:, None]], dim=1)
    else:
        output.logits = received.processed(own)[:, None]


def _check_head(context: DecodeContext, methods: Sequence[MethodHooks], output: Any) -> None:
    """Refuse methods that turn states into logits by themselves on a model that does it in another way."""
    states, context.engine.first_state = context.engine.first_state, None
    if states is not None and context.modules is not None:
        kinds = UsesOutputHead, ReadsEarlyExits  # of the latter on a static cache alone, so the former first
        users = [method for kind in kinds for method in methods if isinstance(method, kind)]
        name = type(users[0]).__name__
        context.modules.check_output_logits(name, states, output.logits[: len(states), -1].float())


def _end_step(context: DecodeContext, methods: Sequence[MethodHooks]) -> None:
    for method, openings in context.engine.gates.end_step():
        context.measure(method, gate=openings, gate_open=(openings > 0).float())
    for method in methods:
        if isinstance(method, ChoosesTokens):  # its steps end when a token is chosen
            continue
        taken = torch.ones_like(context.alive)
        for skipped in method.skipped(context).values():
            taken &= ~skipped
        context.counts_of(method).end_step(context.alive, taken, is_prefill=context.step == 0)
