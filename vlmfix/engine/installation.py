"""Hooks on a model and its text decoder, and what stands in for parts of them while methods act."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from torch import nn
from transformers import CompileConfig, PreTrainedModel

from vlmfix.engine import (
    attention,
    compatibility,
    few_rows,
    forward_hooks,
    kernels,
    last_row,
    model_hooks,
)
from vlmfix.engine.stream_hooks import StreamHooks
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, attention_of, text_decoder


class Attached(model_hooks.Attached, forward_hooks.Attached, few_rows.Run, Protocol):
    """What hangs on a model, as all hooks see it."""


class Installation:
    """What methods need on a model, from the first one that is attached to the last one that is not.

    Args:
        attachment: whose methods act.
        model: checked by `compatibility.check_model`.
    """

    def __init__(self, attachment: Attached, model: PreTrainedModel) -> None:
        self._attachment = attachment
        self._model = model
        self._decoder = text_decoder(model)
        self._of_model = model_hooks.ModelHooks(attachment, model)
        self._of_decoder = forward_hooks.ForwardHooks(attachment, self._decoder)
        self.stream = StreamHooks(attachment, self._decoder)
        self._undo_decoder = ExitStack()
        self._undo = ExitStack()

    def install(self, guarded: Callable[[Any], Any]) -> None:
        """Hang all hooks, and put `generate` behind a guard.

        Args:
            guarded: from the model's own `generate` to what stands in for it.

        Raises:
            UnsupportedError: the attention of the model does not come through the registry.
        """
        attention.register()
        # First, and gone last: whoever looks at the configuration meanwhile finds out why it is as it is.
        self._set(self._decoder, kernels.ATTRIBUTE, self._attachment)
        for module in self._decoder.modules():
            if isinstance(module, PreTrainedModel):
                # Not by the public setter, which may look for kernels anew.
                self._undo.callback(
                    setattr, module.config, "_attn_implementation", module.config._attn_implementation
                )
        self._decoder.set_attn_implementation(kernels.NAME)
        if self._decoder.config._attn_implementation != kernels.NAME:
            raise UnsupportedError(
                f"{type(self._decoder).__name__} does not use the attention registry of transformers, so "
                "that no method can see its attention"
            )
        for index in attention_layers(self._decoder):
            self._set(attention_of(self._decoder, index), kernels.ATTRIBUTE, self._attachment)
        self.hook_decoder(True)
        self._undo.callback(self._undo_decoder.close)
        model, hooks = self._model, self._of_model
        self._undo.callback(model.register_forward_pre_hook(hooks.before, with_kwargs=True).remove)
        self._undo.callback(model.register_forward_hook(hooks.after).remove)
        self._undo.callback(model.register_forward_hook(hooks.end, always_call=True).remove)
        self._attachment.outside.install(self._undo)
        own: Any = model.generate
        self._set(model, "generate", guarded(own))
        self._set(model, "get_compiled_call", self._compiled_call)
        self._set(model, "init_continuous_batching", compatibility.refuse_continuous_batching)

    def undo(self) -> None:
        """Leave the model as it was found."""
        self._undo.close()

    def take_few_rows(self) -> None:
        """Let the linear layers read their weights once for the rows that methods add."""
        modules = (self._decoder, self._model.get_output_embeddings())
        few_rows.install(modules, self._attachment, self._undo)

    def hook_decoder(self, on: bool) -> None:
        """Hang the hooks around the decoder, its layers and their parts, or take them off."""
        self._undo_decoder.close()
        self.stream.install(self._attachment.methods if on else ())
        if not on:
            return
        hooks, keep = self._of_decoder, self._undo_decoder.callback
        for index, layer in enumerate(self._decoder.layers):
            before_layer = functools.partial(hooks.before_layer, index)
            keep(layer.register_forward_pre_hook(before_layer, with_kwargs=True).remove)
        last_row.install(self._decoder, self._reads_last_row_alone, self._undo_decoder)
        keep(self._decoder.register_forward_pre_hook(hooks.before_decoder, with_kwargs=True).remove)
        keep(self._decoder.register_forward_hook(hooks.after_decoder, with_kwargs=True).remove)

    def _compiled_call(self, config: CompileConfig | None) -> Any:
        """Stands in for a model's `get_compiled_call`: the hooks around the model stay out of what is
        compiled."""
        forward = self._attachment.static.compiled(config, self._attachment.methods)

        def call(**kwargs: Any) -> Any:
            _, given = self._of_model.before(self._model, (), kwargs) or ((), kwargs)
            return self._of_model.after(self._model, (), forward(**given))

        return call

    def _reads_last_row_alone(self) -> bool:
        """Whether a pass is over a branch, or over what prompts begin with, of which keys and values stay."""
        context = self._attachment.context
        engine = None if context is None else context.engine
        return engine is not None and (
            engine.active_branch is not None or (engine.prefix is not None and not engine.prefix.is_read)
        )

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute of this instance; undone, it is what it was, or gone."""
        attributes = vars(module)
        if name in attributes:
            self._undo.callback(attributes.__setitem__, name, attributes[name])
        else:
            self._undo.callback(attributes.pop, name)
        attributes[name] = value
