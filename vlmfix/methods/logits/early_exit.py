"""What methods share that turn the residual stream of inner layers into logits: exit e enters layer e."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.validation import layer_indices


def exit_indices(values: Any) -> tuple[int, ...]:
    """Exits as a sorted tuple; a single one may stand alone.

    Raises:
        ValueError: they are no layer indices, or there is none.
    """
    indices = layer_indices("exits", values)
    if not indices:
        raise ValueError(f"exits is {values!r}; it must hold one exit at least")
    return indices


def check_depth(exits: tuple[int, ...], depth: int) -> None:
    """Refuse exits that a model of `depth` layers does not have.

    Raises:
        ValueError: naming the exits and those of the model.
    """
    if exits[-1] >= depth:
        raise ValueError(f"exits has {exits[-1]}; the exits of this model go from 0 to {depth - 1}")


def exit_states(context: DecodeContext, exits: Sequence[int], *, normed: bool) -> Sequence[Tensor]:
    """The newest hidden states at some exits, `(batch, hidden)` each, for `extra_hidden_states`.

    Args:
        exits: what `Method.taps` named.
        normed: whether they go through the final norm.
    """
    if not exits:
        return ()
    assert context.modules is not None
    states = [context.early_exits[each] for each in exits]
    if normed:
        first = states[0]
        states = list(context.modules.final_norm(torch.stack([each.to(first) for each in states])))
    return states
