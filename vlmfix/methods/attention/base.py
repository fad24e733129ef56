"""What methods share that edit attention by the kind of token a key is, in layers known beforehand."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import MeasuresScores, ReadsLastRowAgain
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import Method
from vlmfix.models.profiles import Profile

# Depth of LLaVA-1.5-7B, for which the layers are published.
_PUBLISHED_DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class KeyEdit(Method, ReadsLastRowAgain, ABC):
    """Base of the methods that edit rows after the last image."""

    keeps_prefix: ClassVar = True
    last_row_only: ClassVar[bool] = True
    """Whether it edits the last prompt row and new rows alone; the prompt is then read without an edit."""

    @abstractmethod
    def edits_layer(self, layer: int) -> bool:
        """Whether it takes part in a layer."""

    @abstractmethod
    def key_values(self, context: DecodeContext, layout: PromptLayout, keys: int) -> tuple[Tensor, ...]:
        """What it has to know of `keys` keys, `(batch, keys)` each."""

    def columns(self, context: DecodeContext, layer: int, scores: Tensor) -> tuple[Tensor, ...]:
        """`key_values` of the keys of these scores, `(batch, 1, 1, keys)`; worked out once a step."""
        layout = context.layout_at(layer)
        key, keys = (self, layout, scores.device), scores.shape[-1]
        columns: tuple[Tensor, ...] | None = context.state.get(key)
        if columns is None or columns[0].shape[-1] != keys:
            values = self.key_values(context, layout, keys)
            columns = context.state[key] = tuple(each.to(scores.device)[:, None, None] for each in values)
        return columns

    def begin(self, context: DecodeContext) -> None:
        context.check_attention(
            type(self).__name__, [layer for layer in range(context.num_layers) if self.edits_layer(layer)]
        )

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        if not context.layout.has_image or not self.edits_layer(layer):
            return None
        layout = context.layout_at(layer)
        if not self.last_row_only:
            return layout.rows_after_last_image
        return None if context.is_prefill else layout.last_row

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return self.last_row_only and context.layout.has_image


@dataclass(frozen=True, kw_only=True)
class LayerRange(Method, ABC):
    """Base of the methods that edit a range of layers.

    Args:
        layers: first edited layer and the one after the last, 0-based; None: those that are published for 32
            layers, at the same depth.
    """

    layers: tuple[int, int] | None = None

    published_layers: ClassVar[tuple[int, int]]

    def __post_init__(self) -> None:
        name = f"{type(self).__name__}.published_layers"
        layer_range(getattr(type(self), "published_layers", None), name)
        if self.layers is not None:
            object.__setattr__(self, "layers", layer_range(self.layers, "layers"))

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        layers = fitted_layers(self.layers, self.published_layers, config)
        return dataclasses.replace(self, layers=layers)

    def edits_layer(self, layer: int) -> bool:
        """Whether it takes part in a layer."""
        assert self.layers is not None
        return self.layers[0] <= layer < self.layers[1]


@dataclass(frozen=True, kw_only=True)
class KeyScoreEdit(LayerRange, KeyEdit, MeasuresScores):
    """Base of the methods that edit the scores of all heads by what they know of each key; the second of
    `key_values` is 1 at image tokens."""

    @abstractmethod
    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        """See `Method.edit_scores`."""

    def measure_scores(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> None:
        image = self.columns(context, layer, after)[1][:, 0]
        context.measure(self, size=(after * image).sum(dim=-1), before=(before * image).sum(dim=-1))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "attention to the image in edited layers; 'before': without any edit"}

    def inactive_reason(self, context: DecodeContext) -> str:
        assert self.layers is not None
        if not any(context.layout_at(layer).has_image for layer in range(*self.layers)):
            return "no image token is left in the edited layers; choose earlier layers"
        return "the scores that it scales in the edited layers are 0, or its strength is too small to tell"


@dataclass(frozen=True, kw_only=True)
class ScoreEdit(KeyScoreEdit):
    """Base of those that know of a key only whether it is of the image or of the system prompt."""

    @abstractmethod
    def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
        """What the scores of each key are edited with, `(batch, keys)` float32.

        Args:
            image_tokens: `(batch, keys)` bool.
            system_tokens: those before the first image, `(batch, keys)` bool.
        """

    def key_values(self, context: DecodeContext, layout: PromptLayout, keys: int) -> tuple[Tensor, ...]:
        takes = self.takes(context)[:, None]
        image, system = (
            layout.over_keys(tokens & takes, keys)
            for tokens in (layout.image_tokens, layout.before_first_image)
        )
        return self.factors(image, system), image.float()


def fitted_layers(
    layers: tuple[int, int] | None, published: tuple[int, int], config: PreTrainedConfig
) -> tuple[int, int]:
    """First layer and the one after the last, in a model.

    Args:
        layers: as they were given; None: those that are published.
        published: of 32 layers.
        config: of the whole model.

    Raises:
        ValueError: the model has fewer.
    """
    depth = config.get_text_config().num_hidden_layers
    layers = at_depth(published, depth) if layers is None else layers
    if layers[1] > depth:
        raise ValueError(
            f"layers is {layers}, first and after the last; the layers of this model go from 0 to {depth - 1}"
        )
    return layers


def at_depth(layers: tuple[int, int], depth: int) -> tuple[int, int]:
    """A range of the layers of a model of 32, at the same depth of a model of `depth`; one layer at least."""
    start, end = (round(each * depth / _PUBLISHED_DEPTH) for each in layers)
    start = min(start, depth - 1)
    return start, max(end, start + 1)


def head_pairs(values: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of layer and head, sorted.

    Raises:
        ValueError: they are something else.
    """
    several = values if isinstance(values, list | tuple) else (values,)
    pairs = [tuple(each) if isinstance(each, list | tuple) else () for each in several]
    if any(len(pair) != 2 or any(type(index) is not int or index < 0 for index in pair) for pair in pairs):
        raise ValueError(f"heads is {values!r}; it must hold pairs of layer and head, both 0 or more")
    return tuple(sorted({(layer, head) for layer, head in pairs}))


def check_heads(heads: Sequence[tuple[int, int]], config: PreTrainedConfig) -> None:
    """Refuse pairs of layer and head that a model does not have.

    Raises:
        ValueError: with the pair and those that there are.
    """
    text = config.get_text_config()
    for layer, head in heads:
        if layer >= text.num_hidden_layers or head >= text.num_attention_heads:
            raise ValueError(
                f"heads has {(layer, head)}; the layers of this model go from 0 to "
                f"{text.num_hidden_layers - 1}, its heads from 0 to {text.num_attention_heads - 1}"
            )


def layer_range(values: Any, name: str) -> tuple[int, int]:
    """First layer and the one after the last.

    Raises:
        ValueError: they are no range of layers.
    """
    bounds = tuple(values) if isinstance(values, list | tuple) else ()
    if len(bounds) != 2 or any(type(each) is not int for each in bounds) or not 0 <= bounds[0] < bounds[1]:
        raise ValueError(
            f"{name} is {values!r}; it must be the first edited layer, 0 or more, and the one after the last"
        )
    return bounds[0], bounds[1]
