"""Edits of a decode step on tensors whose shapes are the same in all steps, as static caches need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Edit(NamedTuple):
    """A formula with all that it has to know: `function(values, *tensors, **settings)`.

    Args:
        function: pure, and without anything that depends on numbers in a tensor but what it returns: no
            shape, no branch in Python. It is compiled with the step.
        tensors: prepared when the prompt has been read; shapes depend on the batch, the model and the number
            of keys alone.
        settings: numbers and flags.
    """

    function: Callable[..., Any]
    tensors: tuple[Tensor, ...] = ()
    settings: Mapping[str, Any] = {}


class StaticEdits(NamedTuple):
    """What a method does in one layer of every decode step; each edit returns what it was given, edited.

    Args:
        scores: see `MethodHooks.edit_scores`.
        weights: see `MethodHooks.edit_weights`.
        heads: see `MethodHooks.edit_heads`.
        stream: see `EditsStream.edit_stream`, at the one site of the method; returns a pair, what it edited
            and a tuple of the `sizes`.
        takes: sequences whose stream is edited, `(batch,)` bool.
        edited: how many sites `heads` or `stream` edits in each sequence, `(batch,)`.
        sites: how many there are; None: all heads.
        measure: from the weights of the newest row without any edit and those from edited scores, `(batch,
            heads, keys)` float32 each, to a tuple of sizes; without it, and with `sizes`, the edit of weights
            or heads returns a pair, what it edited and that tuple.
        sizes: their names, see `DecodeContext.measure`; `(batch, sites)` float32 each.
    """

    scores: Edit | None = None
    weights: Edit | None = None
    heads: Edit | None = None
    stream: Edit | None = None
    takes: Tensor | None = None
    edited: Tensor | None = None
    sites: int | None = None
    measure: Edit | None = None
    sizes: tuple[str, ...] = ()


class ExitRows(NamedTuple):
    """Rows that the output head makes logits of, from what enters some layers.

    Args:
        layers: which, 0-based.
        normed: whether it goes through the final norm.
        averaged: whether there is one row of their mean, in the place of a row each.
    """

    layers: tuple[int, ...]
    normed: bool
    averaged: bool = False

    def of(self, exits: Mapping[int, Tensor], final_norm: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The rows, `(batch, hidden)` each.

        Args:
            exits: what enters the layers, `(batch, hidden)` each.
            final_norm: on `(rows, batch, hidden)`.
        """
        if not self.layers:
            return []
        first = exits[self.layers[0]]
        rows = torch.stack([exits[each].to(first) for each in self.layers])
        if self.normed:
            rows = final_norm(rows)
        if self.averaged:
            rows = rows.float().mean(dim=0, keepdim=True).to(rows.dtype)
        return list(rows)
