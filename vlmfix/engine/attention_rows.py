"""Attention of chosen query rows, computed explicitly so that methods can see and edit it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmfix.engine.attention_formulas import (
    attend,
    attention_scores,
    causal,
    log_sum_exp,
    softcapped,
    softmax,
)
from vlmfix.engine.capabilities import MeasuresScores, PreviewsWeights, ReplacesWeights
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gating import gated_rows
from vlmfix.engine.in_place import called
from vlmfix.engine.kernels import ATTRIBUTE
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.method import MethodHooks
from vlmfix.errors import UnsupportedError

# Scores that are computed at once: 128 MiB in float32, and a few times that for what edits make of them.
_BLOCK = 2**25

# A term that a kernel may add to the scores and that the explicit rows do not know.
_FOREIGN_TERM = "position_bias"


def with_explicit_rows(
    asked: list[tuple[MethodHooks, Rows]],
    context: DecodeContext,
    layer: int,
    own_kernel: Callable[[], tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """Let the methods act on the rows they ask for; all other rows keep the output of the model's own kernel.

    In the prompt, heads that no edit changed keep it, too. A decode step has one row: when that is edited,
    reading the cache once more for heads that keep their weights would cost more than it is worth. Many rows
    of a long prompt are computed in blocks, so that memory grows with the keys alone; methods that observe
    see all of theirs at once.

    Args:
        asked: the methods that take part in this layer, in the order of attachment, with their prompt rows.
        own_kernel: computes `(batch, queries, heads, head_dim)` without an edit.

    Returns:
        `(batch, queries, heads, head_dim)`.
    """
    _refuse_foreign_terms(module, kwargs)
    terms = _terms(module, kwargs)
    layout = context.layout_at(layer)
    index, wanted = _rows_of_step(asked, context, layout, query)
    if index is not None and len(index) == 0:
        return own_kernel()[0]
    has_gates = any(method.is_gated for method, _ in asked)
    watching = [(method, own) for method, own in asked if method.observes]
    rows, row_size = query.shape[2] if index is None else len(index), query.shape[:2].numel() * key.shape[2]
    size = max(1, _BLOCK // row_size)
    if rows > size:
        for method, own in watching:
            _check_memory(type(method).__name__, len(own.index), row_size, query.device)
    positions = _positions_of_rows(context, layout, index, query)
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    previewing = [
        (method, mask)
        for (method, _), mask in zip(asked, wanted, strict=True)
        if context.is_prefill and isinstance(method, PreviewsWeights)
    ]
    for part in parts if previewing else ():
        own_index = None if index is None else index[part]
        context.row_positions = None if positions is None else positions[part]
        plain = softmax(
            _scores(_take(query, own_index), key, terms, kwargs),
            _mask_of_rows(attention_mask, own_index, query, key, _is_causal(module, kwargs)),
            terms.get("s_aux"),
        )
        for previewer, mask in previewing:
            own_rows = plain if mask is None else plain.masked_fill(~mask[:, None, part, None], 0.0)
            previewer.preview(context, layer, own_rows)
    blocks = []
    for part in parts:
        context.has_newest_row = part.stop >= rows
        own_index = None if index is None else index[part]
        context.row_positions = None if positions is None else positions[part]
        weights, changes = _edited_weights(
            [
                (method, None if mask is None else mask[:, part])
                for (method, _), mask in zip(asked, wanted, strict=True)
            ],
            context,
            layer,
            _scores(_take(query, own_index), key, terms, kwargs),
            terms.get("s_aux"),
            _mask_of_rows(attention_mask, own_index, query, key, _is_causal(module, kwargs)),
            None if own_index is None or not has_gates else own_index[-1] == query.shape[2] - 1,
        )
        # Without an edit the output is that of the kernel.
        attended = attend(weights, value).to(query.dtype) if changes or rows > size else None
        seen = [_own_rows(weights, own_index, own, layout, _first(layout, query)) for _, own in watching]
        blocks.append(_Block(weights.shape[2], changes, attended, seen))
        del weights
    context.row_positions, context.log_sum_exp = None, None
    context.attend = functools.partial(_attention_output, module, value)
    for number, (method, _) in enumerate(watching):
        observed = _joined([block.seen[number] for block in blocks], dim=2)
        called(method, "observe", observed, partial(method.observe, context, layer))
    context.attend = None
    edits = dict.fromkeys(edit for block in blocks for edit in block.changes)
    if not edits:
        return own_kernel()[0]
    changed = []
    for method, hook in edits:
        changed.append(_joined([block.change(method, hook, query) for block in blocks], dim=2))
        context.count(method, layer, changed[-1], method.edit_sites(layer, query.shape[1]))
    new = _joined([block.attended for block in blocks if block.attended is not None], dim=1)
    if index is None and not all(method.is_gated for method, _ in edits):
        return new
    output, _ = own_kernel()
    if index is None:  # where all gates are closed, the output is that of the kernel to the bit
        openings = [context.engine.gates.of_attention(method, new) for method, _ in edits]
        is_open = reduce(or_, (opening > 0 for opening in openings))
        return torch.where(is_open[:, None, None, None], new, output)
    overwritten = reduce(or_, changed).transpose(1, 2).unsqueeze(-1)
    return output.index_copy(1, index, torch.where(overwritten, new, output[:, index]))


class _Block(NamedTuple):
    """What became of some of the explicit rows.

    Args:
        rows: their number.
        changes: by method and hook, where an edit changed them, `(batch, heads, rows)` bool.
        attended: `(batch, rows, heads, head_dim)`; None: nothing was edited.
        seen: weights of the rows that each observing method asked for, `(batch, heads, rows, keys)`.
    """

    rows: int
    changes: dict[tuple[MethodHooks, str], Tensor]
    attended: Tensor | None
    seen: list[Tensor]

    def change(self, method: MethodHooks, hook: str, query: Tensor) -> Tensor:
        """Where an edit changed them; nowhere, if it gave back what it got."""
        found = self.changes.get((method, hook))
        return query.new_zeros(*query.shape[:2], self.rows, dtype=torch.bool) if found is None else found


def _edited_weights(
    asked: list[tuple[MethodHooks, Tensor | None]],
    context: DecodeContext,
    layer: int,
    scores: Tensor,
    sinks: Tensor | None,
    seen: Tensor | None,
    is_newest: Tensor | None,
) -> tuple[Tensor, dict[tuple[MethodHooks, str], Tensor]]:
    """Weights of some rows under all edits, and which heads and rows each edit changed.

    Args:
        asked: the methods with the rows that they want, `(batch, rows)` bool; None: all of them.
        scores: scaled, `(batch, heads, rows, keys)` float32.
        sinks: see `softmax`.
        seen: the mask of these rows; None: they see everything.
        is_newest: whether the last of these rows is the newest token, which gates are for; None: it is.
    """
    changes: dict[tuple[MethodHooks, str], Tensor] = {}

    def changed(method: MethodHooks, hook: str, before: Tensor, after: Tensor) -> Tensor:
        """Note where a method edited; an edit that returns its input had no part."""
        if after is not before:
            changes[method, hook] = (after != before).any(dim=-1)
        return after

    def gated(method: MethodHooks, before: Tensor, after: Tensor) -> Tensor:
        """What the gate of a method lets through of its edit."""
        if not method.is_gated or after is before:
            return after
        gates = context.engine.gates
        opening, part = gates.of_attention(method, after), gates.of_part(method, after)
        return gated_rows(before, after, opening, is_newest, part)

    edited_scores = scores
    for method, rows in asked:
        edited = called(method, "edit_scores", scores, partial(method.edit_scores, context, layer))
        edited = gated(method, scores, _where_wanted(rows, edited, scores))
        if changed(method, "scores", scores, edited) is not scores:
            # What methods add to the same scores adds up, whatever their order.
            edited_scores = edited if edited_scores is scores else edited_scores + (edited - scores)
    weights = softmax(edited_scores, seen, sinks)
    context.log_sum_exp = partial(log_sum_exp, edited_scores, seen, sinks)
    editing: list[MethodHooks] = []
    measuring = [method for method, _ in asked if isinstance(method, MeasuresScores)]
    if measuring and context.has_newest_row:
        newest = None if seen is None else seen[..., -1:, :]
        before = softmax(scores[:, :, -1:], newest, sinks)[:, :, 0]
        for method in measuring:
            method.measure_scores(context, layer, before, weights[:, :, -1])
    for method, rows in asked:
        edited = called(method, "edit_weights", weights, partial(method.edit_weights, context, layer))
        if edited is not weights:
            editing.append(method)
        edited = gated(method, weights, _where_wanted(rows, edited, weights))
        weights = changed(method, "weights", weights, edited)
    _refuse_lost_edits(editing, layer)
    return weights, changes


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def _check_memory(name: str, rows: int, row_size: int, device: torch.device) -> None:
    """Refuse weights that a method wants to see at once and that do not fit into the memory of a CPU, which
    would kill the process; a GPU says so by itself."""
    if device.type != "cpu":
        return
    needed, free = 2 * 4 * rows * row_size, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise UnsupportedError(
            f"{name} looks at the attention of {rows} prompt tokens at once, which takes "
            f"{needed / 2**30:.1f} GiB where {free / 2**30:.1f} GiB are free; shorten the prompt or make the "
            "batch smaller"
        )


def observed_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """Weights of some rows of a causal block, without an edit: `(batch, heads, rows, keys)` float32.

    Args:
        module: the attention module.
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key_value_heads, keys, head_dim)`.
        rows: which queries, `(rows,)`.
        attention_mask: `(batch, 1, queries, keys)` bool; None for plain causal.

    Raises:
        UnsupportedError: the model adds terms to its scores that explicit rows do not know.
    """
    _refuse_foreign_terms(module, kwargs)
    rows = rows.to(query.device)
    row_size = query.shape[:2].numel() * key.shape[2]
    if len(rows) * row_size > _BLOCK:
        _check_memory("a method", len(rows), row_size, query.device)
    terms = _terms(module, kwargs)
    scores = _scores(_take(query, rows), key, terms, kwargs)
    seen = _mask_of_rows(attention_mask, rows, query, key, _is_causal(module, kwargs))
    return softmax(scores, seen, terms.get("s_aux"))


def with_edited_weights(
    edit: Callable[[Tensor, Tensor, Tensor], Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Tensor:
    """Attention of a causal block under other weights in all rows, `(batch, queries, heads, head_dim)`; those
    of a long prompt are computed in blocks.

    Args:
        edit: from places of rows, their weights, and what they see, see `Branch.edit_weights`.
        module: and what follows, see `observed_weights`.
    """
    queries, keys = query.shape[2], key.shape[2]
    size = max(1, _BLOCK // (query.shape[:2].numel() * keys))
    blocks = []
    for rows in torch.arange(queries, device=query.device).split(size):
        weights = observed_weights(module, query, key, rows, attention_mask, **kwargs)
        seen = causal(rows, queries, keys)[None] if attention_mask is None else attention_mask[:, 0, rows]
        edited = edit(rows + (keys - queries), weights, seen)
        blocks.append(attend(edited, value).to(query.dtype))
    return _joined(blocks, dim=1)


def _refuse_foreign_terms(module: nn.Module, kwargs: dict[str, Any]) -> None:
    if kwargs.get(_FOREIGN_TERM) is not None:
        raise UnsupportedError(
            f"{type(module).__name__} adds {_FOREIGN_TERM} to its attention, which edited rows would lose; "
            "methods at the attention level do not support this model"
        )


def _refuse_lost_edits(methods: Sequence[MethodHooks], layer: int) -> None:
    """Refuse two edits of weights in a layer if one puts those of a head in the place of others.

    Args:
        methods: that have edited the weights.
    """
    replacing = next((method for method in methods if isinstance(method, ReplacesWeights)), None)
    if replacing is not None and len(methods) > 1:
        other = next(method for method in methods if method is not replacing)
        raise UnsupportedError(
            f"{type(replacing).__name__} and {type(other).__name__} both change attention weights in layer "
            f"{layer}, and one edit would be lost; choose other layers for one of them"
        )


def _attention_output(module: nn.Module, value: Tensor, weights: Tensor) -> Tensor:
    """What attention with these weights adds to the residual stream, `(batch, rows, hidden)`."""
    output: Tensor = module.get_submodule("o_proj")(attend(weights, value).flatten(2))
    return output


def _rows_of_step(
    asked: list[tuple[MethodHooks, Rows]], context: DecodeContext, layout: PromptLayout, query: Tensor
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Which queries are explicit rows and which of them each method wants; None stands for all."""
    queries = query.shape[2]
    if context.reads_on(queries):
        return None, [None] * len(asked)
    rows = context.union([rows for _, rows in asked]).to(query.device)
    masks = [own.to(query.device).mask_in(rows) for _, own in asked]
    index = rows.index - _first(layout, query)
    # Without a cache, the generated tokens come along at every step.
    generated = torch.arange(layout.length, max(queries, layout.length), device=query.device)
    if len(generated) == 0:
        return index, list(masks)
    always = rows.mask.new_ones(rows.mask.shape[0], len(generated))
    return torch.cat([index, generated]), [torch.cat([mask, always], dim=1) for mask in masks]


def _positions_of_rows(
    context: DecodeContext, layout: PromptLayout, index: Tensor | None, query: Tensor
) -> Tensor | None:
    """Where the explicit rows stand among the tokens of the layer; None: it is the newest alone."""
    if index is not None:
        return index + _first(layout, query)
    candidates = context.engine.candidates
    return None if candidates is None else layout.length - 1 + candidates.places(query.device)


def _first(layout: PromptLayout, query: Tensor) -> int:
    """Position of the first query in the prompt; not 0 where a shared beginning was read before."""
    return max(0, layout.length - query.shape[2])


def _scaling(query: Tensor, kwargs: dict[str, Any]) -> float:
    scaling = kwargs.get("scaling")
    return query.shape[-1] ** -0.5 if scaling is None else float(scaling)


def _take(query: Tensor, index: Tensor | None) -> Tensor:
    return query if index is None else query.index_select(2, index)


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    is_causal = kwargs.get("is_causal")
    return getattr(module, "is_causal", True) if is_causal is None else is_causal


def _mask_of_rows(
    attention_mask: Tensor | None, index: Tensor | None, query: Tensor, key: Tensor, is_causal: bool
) -> Tensor | None:
    """The part of the mask that belongs to the explicit rows; built where the kernel would imply it."""
    if attention_mask is not None:
        return attention_mask if index is None else attention_mask.index_select(2, index)
    if index is None or not is_causal:
        return None
    return causal(index, query.shape[2], key.shape[2])


def _terms(module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Softcap and sinks of a call; none where the model's own kernel, SDPA, passes them over."""
    attachment = vars(module).get(ATTRIBUTE)
    return {} if attachment is not None and attachment.kernel == "sdpa" else kwargs


def _scores(query: Tensor, key: Tensor, terms: dict[str, Any], kwargs: dict[str, Any]) -> Tensor:
    scores, cap = attention_scores(query, key, _scaling(query, kwargs)), terms.get("softcap")
    return scores if cap is None else softcapped(scores, cap)


def _own_rows(weights: Tensor, index: Tensor | None, rows: Rows, layout: PromptLayout, first: int) -> Tensor:
    """Of the explicit rows at `index` after `first`, those that one method asked for, and generated ones."""
    if index is None or len(index) == len(rows.index):
        return weights
    positions = index + first
    own = torch.isin(positions, rows.index.to(index.device)) | (positions >= layout.length)
    return weights[:, :, own]


def _where_wanted(rows: Tensor | None, edited: Tensor, before: Tensor) -> Tensor:
    """`edited` in the rows `(batch, rows)` that a method wants, `before` in the others."""
    if edited is before or rows is None:
        return edited
    return torch.where(rows[:, None, :, None], edited, before)
