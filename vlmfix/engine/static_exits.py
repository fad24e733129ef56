"""Early exits in a decode step on a static cache: rows that the output head reads beside the newest ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlmfix.engine.static_edits import ExitRows

EXITS = "_vlmfix_static_exits"
"""Of an output head, in the decode steps of a run on a static cache: its `StaticExits`."""


class StaticExits(NamedTuple):
    """Early exits that the output head reads in a decode step.

    Args:
        rows: of each method.
        taps: what enters the layers, by layer.
        final_norm: of the decoder.
    """

    rows: tuple[ExitRows, ...]
    taps: dict[int, Tensor]
    final_norm: Callable[[Tensor], Tensor]


def add_exits(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put early exits after the newest tokens, `(sequences, 1, hidden)`; one function for all runs, so that
    what was compiled stays valid."""
    exits: StaticExits = vars(head)[EXITS]
    states = args[0]
    rows = [row for each in exits.rows for row in each.of(exits.taps, exits.final_norm)]
    return (torch.cat([states, *(row.to(states)[:, None] for row in rows)]), *args[1:])
