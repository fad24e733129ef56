"""The one attention function: the model's own kernel, and explicit rows where a method asks for them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmfix.engine.attention_formulas import causal
from vlmfix.engine.attention_rows import (
    observed_weights,
    with_edited_weights,
    with_explicit_rows,
)
from vlmfix.engine.branches import Parts
from vlmfix.engine.capabilities import EditsQueries
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.gating import gated_heads, gated_rows
from vlmfix.engine.in_place import called
from vlmfix.engine.kernels import ATTRIBUTE, NAME
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.own_kernel import own_kernel
from vlmfix.engine.state import Branch
from vlmfix.engine.static_layer import STEP


def register() -> None:
    """Make `NAME` selectable in transformers; in the mask registry too, or causality and padding are lost."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one decoder layer, in the form that transformers calls.

    Args:
        module: the attention module, which carries the attachment of its model.
        query: `(batch, heads, queries, head_dim)`, after the rotary embedding.
        key: `(batch, key_value_heads, keys, head_dim)`, the whole cache.
        value: like `key`.
        attention_mask: None for plain causal, else `(batch, 1, queries, keys)`, boolean or additive.

    Returns:
        `(batch, queries, heads, head_dim)`, and the weights where the model's own kernel gives them.
    """
    static = vars(module).get(STEP)
    if static is not None:
        of_step: tuple[Tensor, Tensor | None] = static.attention(module, query, key, value, kwargs)
        return of_step
    attachment = vars(module).get(ATTRIBUTE)
    if (
        attachment is None
    ):  # a model without methods that shares its configuration object with one that has some
        unsteered: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **kwargs
        )
        return unsteered
    context: DecodeContext | None = attachment.context
    if context is None:
        attachment.outside.refuse_bypass()
        return own_kernel(attachment.kernel, None, module, query, key, value, attention_mask, **kwargs)
    if context.engine.active_branch is not None:
        return _of_branch(
            attachment.kernel, context.engine.active_branch, module, query, key, value, **kwargs
        )
    if isinstance(key, Parts):
        return _with_branches(attachment, context, module, query, key, value, **kwargs)
    layer: int = vars(module)["layer_idx"]
    layout = context.layout_at(layer)
    if context.engine.peeking is not None:
        mask = layout.attention_mask(query.shape[2], key.shape[2], query.device)
        context.engine.peeked = observed_weights(
            module, query, key, context.engine.peeking.index, mask, **kwargs
        )
        batch, heads, queries, _ = query.shape
        return query.new_zeros(batch, queries, heads, value.shape[-1]), None
    attachment.layers_seen.add(layer)
    if context.engine.prefix is not None and not context.engine.prefix.is_read:  # where no method edits
        layout = context.engine.prefix.layout
        return own_kernel(attachment.kernel, layout, module, query, key, value, attention_mask, **kwargs)
    auxiliary_prompts: list[Tensor] = []
    if context.engine.candidates is not None:
        attention_mask = context.engine.candidates.attention_mask(layout, query.device)
        kwargs["position_ids"] = None
    elif (
        layout is not context.layout or context.auxiliary_prompts
    ):  # the mask and positions given are of the whole prompt
        (query, key, value), *others = _segments(context, query, key, value)
        attention_mask = layout.attention_mask(query.shape[2], key.shape[2], query.device)
        kwargs["position_ids"] = None
        for auxiliary_prompt, segment in zip(context.auxiliary_prompts.values(), others, strict=True):
            own_query, own_key, own_value = segment
            mask = auxiliary_prompt.layout.attention_mask(own_query.shape[2], own_key.shape[2], query.device)
            own, _ = own_kernel(
                attachment.kernel,
                auxiliary_prompt.layout,
                module,
                own_query,
                own_key,
                own_value,
                mask,
                **kwargs,
            )
            auxiliary_prompts.append(own)
    editing: list[Any] = [method for method in attachment.methods if isinstance(method, EditsQueries)]
    for method in editing:
        edit_query = functools.partial(method.edit_query, context, layer, key=key)
        edited = called(method, "edit_query", query, edit_query)
        if method.is_gated and edited is not query:
            gates = context.engine.gates
            opening, part = gates.of_attention(method, edited), gates.of_part(method, edited)
            edited = gated_rows(query, edited, opening, None, part)
        query = edited
    plain = functools.partial(
        own_kernel, attachment.kernel, layout, module, query, key, value, attention_mask, **kwargs
    )
    if layer == context.engine.gates.mass_layer:
        mask = None if attention_mask is None else attention_mask[:, :, -1:]
        context.engine.gates.image_mass = _image_mass(layout, module, query[:, :, -1:], key, mask, **kwargs)
    weights = None
    asked = [
        (method, rows) for method in attachment.methods if (rows := method.rows(context, layer)) is not None
    ]
    if asked:
        output = with_explicit_rows(
            asked, context, layer, plain, module, query, key, value, attention_mask, **kwargs
        )
    else:
        output, weights = plain()
    if auxiliary_prompts:
        output = torch.cat([output, *auxiliary_prompts], dim=1)
    for method in attachment.methods:
        edited = called(method, "edit_heads", output, functools.partial(method.edit_heads, context, layer))
        if method.is_gated and edited is not output:
            gates, newest = context.engine.gates, edited.shape[1] - context.auxiliary_length - 1
            opening, part = gates.of_attention(method, edited), gates.of_part(method, edited)
            edited = gated_heads(output, edited, opening, newest, part)
        output = edited
    return output, weights


def _image_mass(
    layout: PromptLayout, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """Attention of the newest token to the image, mean of the heads, `(batch,)`."""
    row = torch.arange(1, device=query.device)
    weights = observed_weights(module, query, key, row, mask, **kwargs)[:, :, 0]
    image = layout.over_keys(layout.image_tokens, key.shape[2]).to(weights.device)
    return (weights * image[:, None]).sum(dim=-1).mean(dim=1)


def _with_branches(
    attachment: Any,
    context: DecodeContext,
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """A decode step of prompts and branches, each of which attends to its own keys alone."""
    kwargs["position_ids"] = None
    prompts, *others = zip(query.split(context.layout.batch_size), key, value, strict=True)
    layout = context.layout_at(vars(module)["layer_idx"])
    mask = layout.attention_mask(1, prompts[1].shape[2], query.device)
    output, _ = attention(module, *prompts, mask, **kwargs)
    outputs = [output]
    for branch, (own_query, own_key, own_value) in zip(context.engine.branches, others, strict=True):
        own, _ = _of_branch(attachment.kernel, branch, module, own_query, own_key, own_value, **kwargs)
        outputs.append(own)
    return torch.cat(outputs), None


def _of_branch(
    kernel: str, branch: Branch, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of a branch to its own keys, in deep layers to the chosen ones alone."""
    layout, selection = branch.layout, branch.selection
    queries, keys = query.shape[2], key.shape[2]
    mask = layout.attention_mask(queries, keys, query.device)
    layer: int = vars(module)["layer_idx"]
    if branch.watch is not None and branch.alive is not None and queries == 1:
        row = torch.arange(1, device=query.device)
        weights = observed_weights(module, query, key, row, mask, **kwargs)[:, :, 0]
        branch.watch(layer, weights, branch.alive.to(weights.device))
    if branch.edit_weights is not None:
        edit = functools.partial(branch.edit_weights, layer)
        return with_edited_weights(edit, module, query, key, value, mask, **kwargs), None
    if selection is not None and layer == selection.layer - 1:
        index = torch.arange(queries, device=query.device)
        newest = index[-max(1, queries - layout.length + 1) :]
        weights = observed_weights(module, query, key, newest, mask, **kwargs)
        selection.update(weights, causal(index, queries, keys)[None] if mask is None else mask[:, 0])
    if selection is not None and layer >= selection.layer:
        assert selection.seen is not None
        mask = selection.seen.to(query.device)
        if kernel != "eager":  # FlashAttention cannot hide keys from some queries alone
            kernel = "sdpa"
    return own_kernel(kernel, layout, module, query, key, value, mask, **kwargs)


def _segments(context: DecodeContext, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """`(batch, heads, tokens, head_dim)` tensors cut into the prompt and the auxiliary prompts after it."""
    lengths = [
        auxiliary_prompt.inputs_embeds.shape[1] for auxiliary_prompt in context.auxiliary_prompts.values()
    ]
    cuts = [each.split([each.shape[2] - sum(lengths), *lengths], dim=2) for each in tensors]
    return list(zip(*cuts, strict=True))
