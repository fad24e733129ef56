"""One `generate` call as methods see it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor

from vlmfix.runtime.layout import PromptLayout, Rows


@dataclass(eq=False)
class Run:
    """Born at the prefill, gone at the next one or when a method comes or goes; nothing else keeps state.

    Args:
        layout: where the parts of the prompt lie.
        num_layers: decoder layers of the model.
        step: 0 in the prefill, then the number of tokens generated before this forward pass.
        padding_mask: the 2-D mask of this step, `(batch, keys)`, for kernels that take it; None without
            padding.
        state: what methods keep from the prefill for later steps, under keys such as `(self, layer)`.
    """

    layout: PromptLayout
    num_layers: int
    step: int = 0
    padding_mask: Tensor | None = None
    state: dict[Hashable, Any] = field(default_factory=dict)
    _unions: dict[tuple[Rows, ...], Rows] = field(default_factory=dict)

    @property
    def is_prefill(self) -> bool:
        """Whether this step reads the prompt for the first time."""
        return self.step == 0

    def union(self, rows: list[Rows]) -> Rows:
        """The rows that any of `rows` has, worked out once a run for each combination."""
        key = tuple(rows)
        if key not in self._unions:
            self._unions[key] = reduce(or_, dict.fromkeys(rows))
        return self._unions[key]
