"""What methods share that edit the residual stream in layers known beforehand."""

from __future__ import annotations

import dataclasses
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import EditsStream, ReadsLastRowAgain
from vlmfix.engine.context import DecodeContext
from vlmfix.methods.attention.base import at_depth, layer_range
from vlmfix.methods.base import Method
from vlmfix.models.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class StreamEdit(Method, EditsStream, ABC):
    """Base of the methods that edit the residual stream of sequences with an image.

    Args:
        layers: first edited layer and the one after the last, 0-based; None: those that are published, at the
            same depth.
    """

    layers: tuple[int, int] | None = None

    published_layers: ClassVar[tuple[int, int]]
    """Of 32 layers."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        layers = at_depth(self.published_layers, depth) if self.layers is None else self.layers
        if layers[1] > depth:
            raise ValueError(
                f"layers is {layers}, first and after the last; the layers of this model go from 0 to "
                f"{depth - 1}"
            )
        return dataclasses.replace(self, layers=layers)

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        assert self.layers is not None
        return self.layers[0] <= layer < self.layers[1] and context.layout.has_image

    def edited(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> Tensor:
        """`after` where the method takes the sequence, else `before`; counts a site a layer and step.

        Args:
            before: `(batch, tokens, hidden)`.
            after: in the same form.
        """
        key = self, "takes all"
        takes = self.takes(context)
        if key not in context.state:  # the device is read once a run
            context.state[key] = bool(takes.all())
        context.count(self, layer, takes.long(), 1)
        if context.state[key]:
            return after
        return torch.where(takes.to(after.device)[:, None, None], after, before)


@dataclass(frozen=True, kw_only=True)
class NewRowEdit(StreamEdit, ReadsLastRowAgain, ABC):
    """Base of those that edit the last prompt token and new ones alone, which keeps what was read of the
    image."""

    keeps_prefix: ClassVar = True

    def acts_in_layer(self, context: DecodeContext, layer: int) -> bool:
        return super().acts_in_layer(context, layer) and not context.is_prefill

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return context.layout.has_image

    def new_rows(self, context: DecodeContext, layer: int, states: Tensor) -> tuple[Tensor, Tensor]:
        """States `(batch, tokens, hidden)` cut into those of earlier tokens and those that are edited."""
        first = context.first_new_row(layer, states.shape[1])
        return states[:, :first], states[:, first:]
