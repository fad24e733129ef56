"""Attention of one layer in a decode step on a static cache: the same tensors, shapes and code in all steps.

It is compiled with the rest of the model, so that nothing in here may depend on the numbers in a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmfix.engine.attention_formulas import attend, attention_scores, softcapped, softmax
from vlmfix.engine.own_kernel import own_kernel
from vlmfix.engine.static_edits import Edit, StaticEdits

STEP = "_vlmfix_static_layer"
"""Of an attention module, in the decode steps of a run on a static cache: its `StaticLayerStep`."""

STREAM = "_vlmfix_static_stream"
"""Of a module after which methods edit the residual stream: the `StaticLayerStep` of its layer."""


class StaticLayerStep:
    """What methods do in one layer of a decode step.

    Args:
        kernel: attention of the model.
        mask: which keys each sequence sees, `(sequences, 1, 1, keys)` bool; the engine opens a slot a step.
        prompts: how many of the sequences are prompts; branches come after them.
        first: the first of the keys that belongs to prompts, where branches are longer.
        edits: of each method that acts in the layer.
    """

    def __init__(
        self, kernel: str, mask: Tensor, prompts: int, first: int, edits: Sequence[StaticEdits]
    ) -> None:
        self.kernel, self.mask, self.prompts, self.first = kernel, mask, prompts, first
        self.edits = tuple(edits)
        self.edits_rows = any(each.scores is not None or each.weights is not None for each in edits)
        self.edits_heads = any(each.heads is not None for each in edits)
        self.measures = any(each.measure is not None for each in edits)
        self.edited: list[Tensor] = []
        self.sized: list[Tensor] = []

    @property
    def tensors(self) -> list[Tensor]:
        """All that it reads and writes."""
        formulas = [
            each
            for own in self.edits
            for each in (own.scores, own.weights, own.heads, own.measure, own.stream)
            if each
        ]
        held = [tensor for each in formulas for tensor in each.tensors]
        taken = [own.takes for own in self.edits if own.takes is not None]
        return [self.mask, *self.edited, *self.sized, *taken, *held]

    def attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """As `vlmfix.engine.attention.attention`, for one query a sequence."""
        kwargs["position_ids"] = None
        mask = self.mask
        if not self.edits_rows:
            output, weights = own_kernel(self.kernel, None, module, query, key, value, mask, **kwargs)
            if not self.edits_heads:
                return output, weights
            own, others = output[: self.prompts], output[self.prompts :]
        else:
            rows, keys = slice(self.prompts), slice(self.first, None)
            own = self._edited(
                module, query[rows], key[rows, :, keys], value[rows, :, keys], mask[rows, ..., keys], kwargs
            )
            others = output = own[:0]
            if len(query) > self.prompts:
                rest = slice(self.prompts, None)
                others, _ = own_kernel(
                    self.kernel, None, module, query[rest], key[rest], value[rest], mask[rest], **kwargs
                )
        for number, each in enumerate(self.edits):
            if each.heads is not None:
                own = self._apply(number, each.heads, own)
        return (torch.cat([own, others]) if len(others) else own), None

    def _edited(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Attention of the prompts under all edits, as in `vlmfix.engine.attention_rows`."""
        terms = {} if self.kernel == "sdpa" else kwargs
        scaling = kwargs.get("scaling")
        scores = attention_scores(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
        if terms.get("softcap") is not None:
            scores = softcapped(scores, terms["softcap"])
        sinks = terms.get("s_aux")
        changed: dict[int, Tensor] = {}
        edited = scores
        for number, each in enumerate(self.edits):
            if each.scores is not None:
                after = self._apply(number, each.scores, scores)
                changed[number] = (after != scores).any(dim=-1)
                edited = after if edited is scores else edited + (after - scores)
        weights = softmax(edited, mask, sinks)
        if self.measures:
            before = softmax(scores, mask, sinks)[:, :, 0]
            for number, each in enumerate(self.edits):
                if each.measure is not None:
                    measure = each.measure
                    sizes = measure.function(before, weights[:, :, 0], *measure.tensors, **measure.settings)
                    self._keep(number, sizes)
        for number, each in enumerate(self.edits):
            if each.weights is not None:
                after = self._apply(number, each.weights, weights)
                own = (after != weights).any(dim=-1)
                changed[number] = changed[number] | own if number in changed else own
                weights = after
        for number, sites in changed.items():
            self.edited[number].copy_(sites.flatten(1).sum(dim=1))
        return attend(weights, value).to(query.dtype)

    def edit_stream(self, states: Tensor) -> Tensor:
        """States of the residual stream, `(sequences, 1, hidden)`, at the site where methods edit them."""
        own = states[: self.prompts]
        for number, each in enumerate(self.edits):
            if each.stream is not None:
                assert each.takes is not None
                after = self._apply(number, each.stream, own).to(own.dtype)
                own = torch.where(each.takes[:, None, None], after, own)
        return torch.cat([own, states[self.prompts :]]) if len(states) > self.prompts else own

    def _apply(self, number: int, edit: Edit, values: Tensor) -> Tensor:
        """The edit of one method; keeps the sizes that come with it."""
        edited = edit.function(values, *edit.tensors, **edit.settings)
        if isinstance(edited, Tensor):
            return edited
        self._keep(number, edited[1])
        after: Tensor = edited[0]
        return after

    def _keep(self, number: int, sizes: Sequence[Tensor]) -> None:
        self.sized[number].copy_(torch.stack(list(sizes)))
