"""Edits of the residual stream: what a part of a layer adds to it, or all of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import EditsStream
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gating import gated_heads
from vlmfix.engine.in_place import called
from vlmfix.engine.method import MethodHooks
from vlmfix.models.structure import StreamSite, attention_layers, stream_module


class Attached(Protocol):
    """What hangs on a model, as these hooks see it."""

    @property
    def context(self) -> DecodeContext | None:
        """The run in progress; None: there is none."""

    @property
    def methods(self) -> tuple[MethodHooks, ...]:
        """Those that act."""


class StreamHooks:
    """Hooks after the parts of the layers of a decoder, and after the layers, while a method edits there.

    Args:
        attachment: whose methods act.
        decoder: the text decoder.
    """

    def __init__(self, attachment: Attached, decoder: Any) -> None:
        self._attachment = attachment
        self._decoder = decoder
        self._undo = ExitStack()

    def check(self, method: EditsStream) -> None:
        """Refuse a method whose sites are not known in this decoder.

        Raises:
            UnsupportedError: with the reason.
        """
        for index, site in self._sites(method):
            stream_module(self._decoder, index, site)

    def install(self, methods: Sequence[MethodHooks]) -> None:
        """Hang the hooks that these methods need, and no others."""
        self._undo.close()
        editing = [method for method in methods if isinstance(method, EditsStream)]
        for index, site in dict.fromkeys(each for method in editing for each in self._sites(method)):
            module = stream_module(self._decoder, index, site)
            if site in ("enter", "feed_forward_input"):
                before = functools.partial(self._before, index, site)
                hook = module.register_forward_pre_hook(before, with_kwargs=True)
            else:
                hook = module.register_forward_hook(functools.partial(self._after, index, site))
            self._undo.callback(hook.remove)

    def _sites(self, method: EditsStream) -> list[tuple[int, StreamSite]]:
        """Layers and sites in them; layers of a hybrid decoder that do not attend have no attention."""
        attending = attention_layers(self._decoder)
        return [
            (index, site)
            for index in range(len(self._decoder.layers))
            for site in method.stream_sites
            if site != "attention" or index in attending
        ]

    def _before(
        self, layer: int, site: StreamSite, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        states = self._edited(layer, site, args[0] if args else kwargs["hidden_states"])
        if states is None:
            return None
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    def _after(self, layer: int, site: StreamSite, module: nn.Module, args: Any, output: Any) -> Any:
        states = self._edited(layer, site, output[0] if isinstance(output, tuple) else output)
        if states is None:
            return None
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _edited(self, layer: int, site: StreamSite, states: Tensor) -> Tensor | None:
        """What methods make of the states of the prompts, with those of what rides along; None: nothing."""
        context = self._attachment.context
        if context is None or context.engine.active_branch is not None or context.engine.peeking is not None:
            return None
        if context.engine.prefix is not None and not context.engine.prefix.is_read:
            return None
        rows, tokens = context.layout.batch_size, states.shape[1] - context.auxiliary_length
        own = before = states[:rows, :tokens]
        for method in self._attachment.methods:
            if not isinstance(method, EditsStream) or site not in method.stream_sites:
                continue
            if method.acts_in_layer(context, layer):
                edit = functools.partial(method.edit_stream, context, layer, site)
                own = _gated(context, method, own, called(method, "edit_stream", own, edit))
        if own is before:
            return None
        own = own.to(states.dtype)
        if own.shape != states.shape:
            own = torch.cat([own, states[:rows, tokens:]], dim=1)
            own = torch.cat([own, states[rows:]])
        return own


def _gated(context: DecodeContext, method: MethodHooks, before: Tensor, after: Tensor) -> Tensor:
    """What the gate of a method lets through of its edit."""
    if not method.is_gated or after is before:
        return after
    gates = context.engine.gates
    opening, part = gates.of_attention(method, after), gates.of_part(method, after)
    return gated_heads(before[:, :, None], after[:, :, None], opening, after.shape[1] - 1, part)[:, :, 0]
