"""What methods share that turn the residual stream of inner layers into logits: exit e enters layer e."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import AddsExitRows
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.static_edits import ExitRows
from vlmfix.methods.base import Method
from vlmfix.methods.validation import check_flag, layer_indices
from vlmfix.models.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class AddsEarlyExits(Method, AddsExitRows, ABC):
    """Adds the logits of early exits to those of the model; it needs no image.

    Args:
        exits: layers whose input is turned into logits, 0-based; None: those that are published, see
            `published_exits`.
        normed: whether they go through the final norm of the model.
    """

    exits: tuple[int, ...] | None = None
    normed: bool = False

    keeps_prefix: ClassVar = True
    needs_image: ClassVar = False

    @staticmethod
    @abstractmethod
    def published_exits(depth: int) -> tuple[int, ...]:
        """The exits of a model of `depth` layers."""

    def __post_init__(self) -> None:
        if self.exits is not None:
            object.__setattr__(self, "exits", exit_indices(self.exits))
        check_flag("normed", self.normed)

    @property
    def needs_final_norm(self) -> bool:
        return self.normed

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        exits = self.published_exits(depth) if self.exits is None else self.exits
        check_depth(exits, depth)
        return dataclasses.replace(self, exits=exits)

    def exit_rows(self, context: DecodeContext) -> ExitRows:
        assert self.exits is not None
        return ExitRows(self.exits, self.normed)


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
