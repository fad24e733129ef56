"""Decode steps on a static cache, which transformers may compile.

The prompt is read into a growing cache, as ever; what was read then moves into the static one. In the steps
that follow no hook is left on the decoder: methods that can act in tensors of one shape are part of the code
of the attention (`StaticLayerStep`), and what they do to the logits comes after it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import CompileConfig, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

from vlmfix.engine.caches import read_cache, with_cache, write_cache
from vlmfix.engine.capabilities import (
    ActsInStaticSteps,
    AddsAuxiliaryPrompt,
    ChoosesTokens,
    PrunesTokens,
    ReadsEarlyExits,
    RemembersSequences,
    RunsLayerParts,
)
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.static_edits import StaticEdits
from vlmfix.engine.static_layer import STEP, StaticLayerStep
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import attention_layers, attention_of, text_decoder

_REMEDY = "leave out cache_implementation, for the default dynamic cache"

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
        self._given: StaticCache | None = None
        self._own: StaticCache | None = None
        self._layers: dict[int, StaticLayerStep] = {}
        self._acting: dict[int, list[MethodHooks]] = {}
        self._taps: dict[int, Tensor] = {}
        self._masks: dict[torch.device, Tensor] = {}
        self._first = 0
        self._undo = ExitStack()

    def check(self, methods: Sequence[MethodHooks]) -> None:
        """Refuse methods that cannot act in such steps.

        Raises:
            UnsupportedError: with the remedy.
        """
        if self._attachment.kernel not in ("sdpa", "eager"):
            raise UnsupportedError(
                f"methods support a static cache with attn_implementation='sdpa' or 'eager', and this model "
                f"has {self._attachment.kernel!r}; {_REMEDY}"
            )
        for method in methods:
            if not can_act(method):
                raise UnsupportedError(
                    f"{type(method).__name__} needs what has no fixed shape, and a static cache has one; "
                    f"{_REMEDY}"
                )

    def expects(self, cache: Any) -> bool:
        """Whether a pass on this cache is a step of the run."""
        return cache is not None and cache is self._given

    def read_prompts(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the pass over the prompts, with the mask that the processor made in the place of the
        one that `generate` prepared for all slots of the cache."""
        cache = read_cache(kwargs)
        if any(type(layer) is not StaticLayer for layer in cache.layers) or getattr(
            cache, "offloading", False
        ):
            raise UnsupportedError(
                f"some layers of {type(self._decoder).__name__} keep another cache than all tokens on the "
                f"device, which methods do not support as a static one; {_REMEDY}"
            )
        mask, ids = kwargs.get("attention_mask"), kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if ids is None else ids
        if isinstance(mask, Tensor) and mask.ndim == 4:
            seen = mask[:, 0, -1, : tokens.shape[1]]  # by the last token: all that is no padding
            seen = seen if mask.dtype == torch.bool else seen == 0
            return kwargs | {"attention_mask": seen.long().expand(tokens.shape[0], -1)}
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise UnsupportedError(
                f"{type(self._model).__name__} prepares masks of several kinds, which methods do not support "
                f"with a static cache; {_REMEDY}"
            )
        return kwargs

    def begin(self, context: DecodeContext, output: Any) -> None:
        """Move what was read of the prompts into the static cache, and take the hooks off."""
        given = context.engine.static
        assert given is not None
        grown = read_cache(output)
        write_cache(output, given)
        branches = context.engine.branches
        for branch in branches:
            if not branch.fused or branch.selection or branch.edit_weights or branch.cache is None:
                raise UnsupportedError(
                    "the branches of a method here have passes or weights of their own, for which a static "
                    f"cache has no room; {_REMEDY}"
                )
        lengths = [context.layout.length, *(branch.inputs_embeds.shape[1] for branch in branches)]
        self._first = max(lengths) - lengths[0]
        slots = given.layers[0].max_cache_len + self._first
        if max(lengths) + context.engine.planned - 1 > slots:
            raise UnsupportedError(
                f"the static cache has {slots} slots, and {lengths[0]} tokens of the prompt and "
                f"{context.engine.planned} new ones are to go into it; make it longer, or "
                "lower max_new_tokens"
            )
        self._given, context.engine.cache = given, given
        caches: list[Any] = [grown, *(branch.cache for branch in branches)]
        self._own = given
        if branches:
            self._own = StaticCache(self._model.config.get_text_config(decoder=True), max_cache_len=slots)
        for index in range(len(grown.layers)):
            self._move(index, caches, max(lengths))
        real = [context.layout.real_tokens, *(branch.real_tokens for branch in branches)]
        mask = torch.cat([nn.functional.pad(each, (max(lengths) - each.shape[1], 0)) for each in real])
        mask = nn.functional.pad(mask, (0, slots - max(lengths)))[:, None, None]
        self._masks = {}
        self._hang(context, mask, slots - self._first)
        self._hooks(False)
        self._undo.callback(self._hooks, True)

    def _move(self, index: int, caches: Sequence[DynamicCache], length: int) -> None:
        """Fill a layer of the static cache; a layer of a growing one is let go of."""
        layers: list[Any] = [cache.layers[index] for cache in caches]
        parts = []
        for name in ("keys", "values"):
            padded = [
                nn.functional.pad(getattr(layer, name), (0, 0, length - getattr(layer, name).shape[2], 0))
                for layer in layers
            ]
            parts.append(padded[0] if len(padded) == 1 else torch.cat(padded))
            for layer in layers:
                setattr(layer, name, None)
        assert self._own is not None
        self._own.update(*parts, index)
        if self._own is not self._given:
            self._show(index, len(parts[0]) // len(caches), length - self._first)

    def _show(self, index: int, prompts: int, length: int) -> None:
        """Let the cache that was given hold what belongs to the prompts."""
        assert self._own is not None
        assert self._given is not None
        own: Any = self._own.layers[index]
        shown: Any = self._given.layers[index]
        shown.keys, shown.values = (each[:prompts, :, self._first :] for each in (own.keys, own.values))
        shown.device, shown.batch_size, shown.num_heads = own.device, prompts, own.num_heads
        shown.k_head_dim, shown.v_head_dim = own.k_head_dim, own.v_head_dim
        shown.cumulative_length = shown.cumulative_length.to(own.device).fill_(length)
        shown.is_initialized = True

    def _hang(self, context: DecodeContext, mask: Tensor, keys: int) -> None:
        prompts, heads = context.layout.batch_size, self._decoder.config.num_attention_heads
        for layer in self._attending:
            edits: list[StaticEdits] = []
            self._acting[layer] = []
            for method in self._attachment.methods:
                own = (
                    method.static_edits(context, layer, keys)
                    if isinstance(method, ActsInStaticSteps)
                    else None
                )
                if own is not None:
                    edits.append(own)
                    self._acting[layer].append(method)
            module = attention_of(self._decoder, layer)
            device = self._own.layers[layer].keys.device
            own_mask = self._masks.setdefault(device, mask.to(device))
            step = StaticLayerStep(self._attachment.kernel, own_mask, prompts, self._first, edits)
            for each in edits:
                sites = heads if each.sites is None else each.sites
                step.edited.append(torch.zeros(prompts, dtype=torch.int64, device=device))
                step.sized.append(torch.zeros(len(each.sizes), prompts, sites, device=device))
            self._layers[layer] = step
            vars(module)[STEP] = step
            self._undo.callback(vars(module).pop, STEP)
        for layer in sorted(context.engine.tapped_layers):
            like = context.early_exits[layer]
            self._taps[layer] = torch.zeros_like(like)
            module = self._decoder.layers[layer]
            self._tap(module, self._taps[layer])

    def _tap(self, module: nn.Module, tap: Tensor) -> None:
        attributes, forward = vars(module), module.forward
        if "forward" in attributes:
            self._undo.callback(attributes.__setitem__, "forward", forward)
        else:
            self._undo.callback(attributes.pop, "forward")
        attributes["forward"] = functools.partial(_tapped, forward, tap)

    def step_inputs(self, context: DecodeContext, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a step, with rows for the branches, after the step has been counted."""
        assert self._own is not None
        slot = self._first + context.layout.length + context.step - 1
        for mask in self._masks.values():
            mask[..., slot] = True
        branches = context.engine.branches
        mask = self._masks[next(iter(self._masks))]
        kwargs = with_cache(self._model, kwargs, self._own) | {"attention_mask": mask}
        if not branches:
            return kwargs
        rows, copies = context.layout.batch_size, 1 + len(branches)
        real = kwargs.get("position_ids")
        real = context.position_of(context.step - 1) if real is None else real
        real = real.expand(*real.shape[:-2], rows, 1)
        positions = [
            branch.positions(real, context.step, context.first_position)[..., -1:] for branch in branches
        ]
        repeated = {
            name: value.repeat(copies, *[1] * (value.ndim - 1))
            for name, value in kwargs.items()
            if isinstance(value, Tensor) and value.ndim == 2 and value.shape == (rows, 1)
        }
        return (
            kwargs
            | repeated
            | {
                "position_ids": torch.cat([real, *positions], dim=-2),
                "attention_mask": mask,
            }
        )

    def end_pass(self, context: DecodeContext, output: Any) -> None:
        """After a step: note what methods did, and turn early exits into logits."""
        assert self._given is not None
        if self._own is not self._given:
            write_cache(output, self._given)
            shown: Any = self._given.layers[0]
            shown.cumulative_length.add_(1)
        heads = self._decoder.config.num_attention_heads
        for layer, step in self._layers.items():
            for number, method in enumerate(self._acting[layer]):
                each = step.edits[number]
                edited = step.edited[number] if each.edited is None else each.edited
                context.count(method, layer, edited, heads if each.sites is None else each.sites)
                if each.sizes:
                    context.measure(method, **dict(zip(each.sizes, step.sized[number], strict=True)))
        context.early_exits = self._taps
        rows: list[Tensor] = []
        for each in self._attachment.methods:
            if isinstance(each, ReadsEarlyExits):
                assert context.modules is not None
                rows += each.extra_hidden_states(context, output.logits[:0, -1])
        if rows:
            logits = context.modules.output_logits(torch.cat([row.to(rows[0]) for row in rows]))
            output.logits = torch.cat([output.logits[:, -1:], logits[:, None].to(output.logits)])

    def end(self) -> None:
        """Put the hooks back."""
        if self._own is not self._given and self._own is not None and self._given is not None:
            for own, shown in zip(self._own.layers, self._given.layers, strict=True):
                shown.cumulative_length.copy_(own.cumulative_length - self._first)  # type: ignore[attr-defined]
        self._undo.close()
        self._given = self._own = None
        self._layers, self._acting, self._taps = {}, {}, {}

    def compiled(self, config: CompileConfig | None, methods: Sequence[MethodHooks]) -> Callable[..., Any]:
        """The forward of the model, compiled as `generate` would; kept as long as the model.

        Args:
            config: of `generate`; None: that of the model.
            methods: that act, for whose code it is.
        """
        options = (config or self._model._default_compile_config()).to_dict()
        key = f"{options} {methods}"
        known = _compiled.setdefault(self._model, {})
        if key not in known:
            if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
                options["isolate_recompiles"] = True  # or eight kinds of methods would be all of a process
            known[key] = torch.compile(self._model.forward, **options)
        return known[key]


def can_act(method: MethodHooks) -> bool:
    """Whether a method can act in tensors of one shape: by its word, or since it edits logits alone."""
    if method.is_gated or isinstance(method, RemembersSequences):
        return False
    elsewhere = PrunesTokens | ChoosesTokens | RunsLayerParts | AddsAuxiliaryPrompt
    return isinstance(method, ActsInStaticSteps) or not (
        method.edits_attention or method.observes or isinstance(method, elsewhere)
    )


def _tapped(
    forward: Callable[..., Any], tap: Tensor, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A layer that keeps what enters it of the prompts."""
    tap.copy_(hidden_states[: len(tap), -1])
    return forward(hidden_states, *args, **kwargs)
