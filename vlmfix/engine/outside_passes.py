"""Passes that come to a model from outside of the calls that a block knows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from transformers import DynamicCache, PreTrainedModel

from vlmfix.engine.callers import turns_of
from vlmfix.engine.forward_hooks import Attached
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.modules import Offsets, offsets, swap_offsets
from vlmfix.errors import UnsupportedError


class OutsidePasses:
    """Tells whose a pass outside of `generate` is, and makes it wait for its turn.

    Args:
        attachment: whose methods act.
        model: on which it hangs.
    """

    def __init__(self, attachment: Attached, model: PreTrainedModel) -> None:
        self.turns = turns_of(model)
        self._attachment = attachment
        self._model = model
        self._in_pass = False
        self._offsets = offsets(model)  # of those whose calls began before the block
        self._offsets_aside: Offsets | None = None
        self._calls_before = 0

    def install(self, undo: ExitStack) -> None:
        """Begin to tell them apart; undone, the offsets are those from before the block."""
        self._calls_before = self._calls_of_generate()
        undo.callback(lambda: swap_offsets(self._offsets))

    def begin(self, cache: DynamicCache | None) -> bool:
        """Wait for the turn of a pass, and tell whether it is one of the block.

        A pass of another caller goes on plainly if it goes on from what was read before the block.

        Raises:
            UnsupportedError: it is in a `generate` of which the block knows nothing.
        """
        is_others = not self.turns.is_here
        if is_others and (cache is None or cache.get_seq_length() == 0):
            self.turns.await_others()
            return False
        self.turns.begin(stranger=is_others)
        if not self._attachment.methods:  # the block was left meanwhile, and nothing will end the pass
            self.turns.end()
            return False
        self._in_pass = True
        if is_others:
            self._offsets_aside = swap_offsets(self._offsets)
            return False
        self._refuse_calls_past_the_block()
        return True

    def end(self) -> bool:
        """Let others call, whether or not the pass came to its end; whether there was one."""
        if not self._in_pass or not self.turns.is_mine:
            return False
        self._in_pass = False
        if self._offsets_aside is not None:
            self._offsets, self._offsets_aside = swap_offsets(self._offsets_aside), None
        self.turns.end()
        return True

    def _calls_of_generate(self) -> int:
        """How many calls of the model's own `generate` this thread is inside of."""
        kind: Any = type(self._model)  # with GenerationMixin, unknown to its type
        code = inspect.unwrap(kind.generate).__code__
        calls, frame = 0, inspect.currentframe()
        while frame is not None:
            calls += frame.f_code is code and frame.f_locals.get("self") is self._model
            frame = frame.f_back
        return calls

    def _refuse_calls_past_the_block(self) -> None:
        """Refuse a pass in a `generate` of which the block knows nothing."""
        if self._calls_of_generate() > self._calls_before:
            raise UnsupportedError(
                f"this call of generate went past the block of {names_of(self._attachment.methods)}: it was "
                "bound before the block was entered, or called through the class; call model.generate(...) "
                "inside the block"
            )

    def refuse_bypass(self) -> None:
        """Refuse attention in the thread of the block that belongs to no run.

        Raises:
            UnsupportedError: with the remedy.
        """
        if self._attachment.methods and self.turns.is_here:
            raise UnsupportedError(
                f"the language model was called past the block of {names_of(self._attachment.methods)}: by "
                "model.forward, model.model, get_decoder or a layer, in a thread that a wrapper started, or "
                "without the hooks of the model; call model(...) or model.generate(...)"
            )


def names_of(methods: Sequence[MethodHooks]) -> str:
    """The classes of methods, for messages."""
    return ", ".join(type(method).__name__ for method in methods) or "a method"
