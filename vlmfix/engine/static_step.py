"""Decode steps on a static cache, which transformers may compile.

The prompt is read into a growing cache, as ever; what was read then moves into the static one. In the steps
that follow no hook is left on the decoder: methods that can act in tensors of one shape are part of the code
of the attention (`StaticLayerStep`), and what they do to the logits comes after it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import CompileConfig, PreTrainedModel
from transformers.cache_utils import StaticLayer

from vlmfix.engine.caches import read_cache, with_cache, write_cache
from vlmfix.engine.capabilities import (
    ActsInStaticSteps,
    AddsAuxiliaryPrompt,
    AddsExitRows,
    ChoosesTokens,
    EditsStream,
    PrunesTokens,
    ReadsEarlyExits,
    RemembersSequences,
    RunsLayerParts,
)
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.few_rows import FewRowsLinear
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.static_cache import REMEDY, RunCache
from vlmfix.engine.static_exits import EXITS, StaticExits, add_exits
from vlmfix.engine.static_layer import STEP, STREAM, StaticLayerStep
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import StreamSite, attention_layers, attention_of, stream_module, text_decoder

_TAP = "_vlmfix_static_tap"

_OWN_HOOKS = 3  # that the engine hangs on a model

_compiled: WeakKeyDictionary[nn.Module, dict[str, Callable[..., Any]]] = WeakKeyDictionary()


class Attached(Protocol):
    """What hangs on a model, as its decode steps on a static cache see it."""

    kernel: str

    @property
    def context(self) -> DecodeContext | None:
        """The run in progress; None: there is none."""

    @property
    def methods(self) -> tuple[MethodHooks, ...]:
        """Those that act."""


class StaticSteps:
    """The decode steps of one run on a static cache.

    Args:
        attachment: whose methods act.
        model: with its decoder.
        hooks: takes the hooks of the engine off the decoder (False) and puts them back (True).
    """

    def __init__(self, attachment: Attached, model: PreTrainedModel, hooks: Callable[[bool], None]) -> None:
        self._attachment, self._model, self._hooks = attachment, model, hooks
        self._decoder: Any = text_decoder(model)
        self._attending = attention_layers(self._decoder)
        self._heads: int = self._decoder.config.num_attention_heads
        self._cache: RunCache | None = None
        self._layers: dict[int, StaticLayerStep] = {}
        self._acting: dict[int, list[MethodHooks]] = {}
        self._taps: dict[int, Tensor] = {}
        self._undo = ExitStack()

    def check(self, methods: Sequence[MethodHooks]) -> None:
        """Refuse methods that cannot act in such steps.

        Raises:
            UnsupportedError: with the remedy.
        """
        if self._attachment.kernel not in ("sdpa", "eager"):
            raise UnsupportedError(
                f"methods support a static cache with attn_implementation='sdpa' or 'eager', and this model "
                f"has {self._attachment.kernel!r}; {REMEDY}"
            )
        for method in methods:
            if not can_act(method):
                raise self._unfit(method)

    def _unfit(self, method: MethodHooks) -> UnsupportedError:
        gate = " with a gate, or on a part of the answer," if method.is_gated else ""
        return UnsupportedError(
            f"{type(method).__name__}{gate} cannot act in steps of one shape, which a static cache asks for; "
            f"{REMEDY}"
        )

    def expects(self, cache: Any) -> bool:
        """Whether a pass on this cache is a step of the run."""
        return self._cache is not None and cache is self._cache.given

    def read_prompts(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pass over the prompts, with the mask that the processor made in the place of the
        one that `generate` prepared for all slots of the cache."""
        cache = read_cache(kwargs)
        if any(type(layer) is not StaticLayer for layer in cache.layers) or getattr(
            cache, "offloading", False
        ):
            raise UnsupportedError(
                f"some layers of {type(self._decoder).__name__} keep another cache than all tokens on the "
                f"device, which methods do not support as a static one; {REMEDY}"
            )
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
        if isinstance(mask, Mapping):  # one for each type of layer, of which there is one
            mask = mask.get("full_attention")
        tokens = kwargs["inputs_embeds"] if ids is None else ids
        if isinstance(mask, Tensor) and mask.ndim == 4:
            seen = mask[:, 0, -1, : tokens.shape[1]]  # by the last token: all that is no padding
            seen = seen if mask.dtype == torch.bool else seen == 0
            return kwargs | {"attention_mask": seen.long().expand(tokens.shape[0], -1)}
        return kwargs | {"attention_mask": mask}

    def begin(self, context: DecodeContext, output: Any) -> None:
        """Move what was read of the prompts into the static cache, and take the hooks off."""
        given = context.engine.static
        assert given is not None
        methods = self._attachment.methods
        for branch in context.engine.branches:
            if not branch.fused or branch.selection or branch.edit_weights or branch.cache is None:
                owner = next(each for each in methods if type(each).branches is not MethodHooks.branches)
                raise UnsupportedError(
                    f"{type(owner).__name__} decodes branches in passes or with weights of their own, for "
                    f"which a static cache has no room; {REMEDY}"
                )
        if any(stage.renumbered for stage in context.pruning_stages):
            owner = next(each for each in methods if isinstance(each, PrunesTokens))
            raise UnsupportedError(
                f"{type(owner).__name__} counts the tokens that it keeps anew, for which a static cache has "
                f"no place; {REMEDY}"
            )
        config = self._model.config.get_text_config(decoder=True)
        self._cache = RunCache(config, given, read_cache(output), context)
        write_cache(output, given)
        context.engine.cache = given
        for layer in self._attending:
            self._hang(context, self._cache, layer)
        for layer in sorted(context.engine.tapped_layers):
            self._tap(context, layer)
        self._hooks(False)
        self._undo.callback(self._hooks, True)

    def _hang(self, context: DecodeContext, cache: RunCache, layer: int) -> None:
        """Make the edits of a layer part of its attention."""
        asked = [each for each in self._attachment.methods if isinstance(each, ActsInStaticSteps)]
        for method in self._attachment.methods:
            if method not in asked and method.rows(context, layer) is not None:
                raise self._unfit(method)
        found = {each: each.static_edits(context, layer, cache.keys(layer)) for each in asked}
        acting = {each: edits for each, edits in found.items() if edits is not None}
        mask, prompts = cache.masks[layer], context.layout.batch_size
        step = StaticLayerStep(
            self._attachment.kernel, mask, prompts, cache.firsts[layer], list(acting.values())
        )
        for edits in acting.values():
            sites = self._heads if edits.sites is None else edits.sites
            step.edited.append(torch.zeros(prompts, dtype=torch.int64, device=mask.device))
            step.sized.append(torch.zeros(len(edits.sizes), prompts, sites, device=mask.device))
        for tensor in step.tensors:
            torch._dynamo.mark_static_address(tensor, guard=False)  # or CUDA graphs are not recorded
        self._layers[layer], self._acting[layer] = step, list(acting)
        self._mark(attention_of(self._decoder, layer), STEP, step)
        streams: set[StreamSite] = {
            site
            for method, edits in acting.items()
            if edits.stream is not None and isinstance(method, EditsStream)
            for site in method.stream_sites
        }
        if len(streams) > 1:
            raise UnsupportedError(
                f"methods edit the stream in several places of a layer ({', '.join(sorted(streams))}), which "
                f"a static cache does not allow; {REMEDY}"
            )
        for site in streams:
            module = stream_module(self._decoder, layer, site)
            self._mark(module, STREAM, step)
            self._undo.callback(module.register_forward_hook(_edit_stream).remove)

    def _tap(self, context: DecodeContext, layer: int) -> None:
        module: nn.Module = self._decoder.layers[layer]
        self._taps[layer] = torch.zeros_like(context.early_exits[layer])
        torch._dynamo.mark_static_address(self._taps[layer], guard=False)
        self._mark(module, _TAP, self._taps[layer])
        self._undo.callback(module.register_forward_pre_hook(_keep_newest, with_kwargs=True).remove)

    def _mark(self, module: nn.Module, name: str, value: Any) -> None:
        vars(module)[name] = value
        self._undo.callback(vars(module).pop, name)

    def _add_exits(self, context: DecodeContext) -> None:
        """Let the output head read the exits beside the newest tokens, where it is a plain one."""
        head = self._model.get_output_embeddings()
        methods = self._attachment.methods
        rows = [each.exit_rows(context) for each in methods if isinstance(each, AddsExitRows)]
        can_all = len(rows) == sum(isinstance(each, ReadsEarlyExits) for each in methods)
        if can_all and any(each.layers for each in rows) and type(head) in (nn.Linear, FewRowsLinear):
            assert context.modules is not None
            self._mark(head, EXITS, StaticExits(tuple(rows), self._taps, context.modules.final_norm))
            self._undo.callback(head.register_forward_pre_hook(add_exits).remove)

    def step_inputs(self, context: DecodeContext, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a step, with rows for the branches, after the step has been counted."""
        assert self._cache is not None
        if context.step == 1:  # not before, as the head has still to read the prompts then
            self._add_exits(context)
        self._cache.open(context.step)
        kwargs = with_cache(self._model, kwargs, self._cache.cache)
        branches, rows = context.engine.branches, context.layout.batch_size
        real = kwargs.get("position_ids")
        if real is None or (context.pruning_stages and context.pruning_stages[0].first_layer == 0):
            real = context.position_of(context.step - 1)  # the model counts the tokens of its first layer
        if branches:
            real = real.expand(*real.shape[:-2], rows, 1)
            positions = (branch.positions(real, context.step, context.first_position) for branch in branches)
            real = torch.cat([real, *(each[..., -1:] for each in positions)], dim=-2)
            kwargs |= {
                name: value.repeat(1 + len(branches), 1)
                for name, value in kwargs.items()
                if isinstance(value, Tensor) and value.shape == (rows, 1)
            }
        return kwargs | {"position_ids": real, "attention_mask": self._cache.masks[0]}

    def end_pass(self, context: DecodeContext, output: Any) -> None:
        """After a step: note what methods did, and turn early exits into logits."""
        assert self._cache is not None
        write_cache(output, self._cache.given)
        self._cache.end_step()
        for layer, step in self._layers.items():
            for method, edits, edited, sized in zip(
                self._acting[layer], step.edits, step.edited, step.sized, strict=True
            ):
                edited = edited if edits.edited is None else edits.edited
                context.count(method, layer, edited, self._heads if edits.sites is None else edits.sites)
                if edits.sizes:
                    context.measure(method, **dict(zip(edits.sizes, sized, strict=True)))
        context.early_exits = self._taps
        if len(output.logits) > context.layout.batch_size * (1 + len(context.engine.branches)):
            return  # the head has read the exits
        rows: list[Tensor] = []
        for each in self._attachment.methods:
            if isinstance(each, ReadsEarlyExits):
                rows += each.extra_hidden_states(context, output.logits[:0, -1])
        if rows:
            assert context.modules is not None
            logits = context.modules.output_logits(torch.cat([row.to(rows[0]) for row in rows]))
            output.logits = torch.cat([output.logits[:, -1:], logits[:, None].to(output.logits)])

    def end(self) -> None:
        """Put the hooks back."""
        if self._cache is not None:
            self._cache.close()
        self._undo.close()
        self._cache, self._layers, self._acting, self._taps = None, {}, {}, {}

    def compiled(self, config: CompileConfig | None, methods: Sequence[MethodHooks]) -> Callable[..., Any]:
        """The forward of the model, compiled as `generate` would; kept as long as the model.

        Args:
            config: of `generate`; None: that of the model.
            methods: that act, for whose code it is.

        Raises:
            UnsupportedError: there are hooks on the model which it would not call.
        """
        if len(self._model._forward_pre_hooks) + len(self._model._forward_hooks) > _OWN_HOOKS:
            raise UnsupportedError(
                f"there are hooks on {type(self._model).__name__}, which compiled steps would pass over; "
                "remove them, or pass disable_compile=True"
            )
        options = (config or self._model._default_compile_config()).to_dict()
        key = f"{options} {methods}"
        known = _compiled.setdefault(self._model, {})
        if key not in known:
            if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
                options["isolate_recompiles"] = True  # or eight kinds of methods would be all of a process
            known[key] = torch.compile(_forward, **options)
        return functools.partial(known[key], self._model)


def _forward(model: nn.Module, **kwargs: Any) -> Any:
    """What is compiled; it does not hold the model, which it would keep alive."""
    return model.forward(**kwargs)


def can_act(method: MethodHooks) -> bool:
    """Whether a method can act in tensors of one shape: by its word, or since it edits no attention."""
    if method.is_gated or isinstance(method, RemembersSequences):
        return False
    elsewhere = ChoosesTokens | RunsLayerParts | AddsAuxiliaryPrompt
    return isinstance(method, ActsInStaticSteps) or not (
        method.edits_attention or isinstance(method, elsewhere)
    )


def _edit_stream(module: nn.Module, args: Any, output: Any) -> Any:
    """Edit what a module adds to the residual stream, or leaves it as; one function, as below."""
    step: StaticLayerStep = vars(module)[STREAM]
    if isinstance(output, tuple):
        return (step.edit_stream(output[0]), *output[1:])
    return step.edit_stream(output)


def _keep_newest(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep what enters a layer at the newest token of the prompts; one function for all layers and runs, so
    that what was compiled stays valid."""
    tap = vars(layer)[_TAP]
    tap.copy_((args[0] if args else kwargs["hidden_states"])[: len(tap), -1])
