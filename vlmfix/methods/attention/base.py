"""What methods share that edit attention by the kind of token a key is, in layers known beforehand."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps, MeasuresScores, ReadsLastRowAgain
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import Method
from vlmfix.models.profiles import Profile

# Depth of LLaVA-1.5-7B, for which the layers are published.
_PUBLISHED_DEPTH = 32

_SIZES = ("size", "before")


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
            columns = context.state[key] = self._columns(context, layout, keys, scores.device)
        return columns

    def static_columns(self, context: DecodeContext, layer: int, keys: int) -> tuple[Tensor, ...] | None:
        """`columns` for all steps of a static cache; None: it does not act in the layer."""
        if self.rows(context, layer) is None:
            return None
        layout = context.layout_at(layer)
        return self._columns(context, layout, keys, layout.image_tokens.device)

    def _columns(
        self, context: DecodeContext, layout: PromptLayout, keys: int, device: torch.device
    ) -> tuple[Tensor, ...]:
        values = self.key_values(context, layout, keys)
        return tuple(each.to(device)[:, None, None] for each in values)

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
        sizes = image_attention(before, after, self.columns(context, layer, after)[1])
        context.measure(self, **dict(zip(_SIZES, sizes, strict=True)))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "attention to the image in edited layers; 'before': without any edit"}

    def inactive_reason(self, context: DecodeContext) -> str:
        assert self.layers is not None
        if not any(context.layout_at(layer).has_image for layer in range(*self.layers)):
            return "no image token is left in the edited layers; choose earlier layers"
        return "the scores that it scales in the edited layers are 0, or its strength is too small to tell"


@dataclass(frozen=True, kw_only=True)
class FormulaEdit(KeyScoreEdit, ActsInStaticSteps, ABC):
    """Base of those whose edit is a formula of the scores and the first of `key_values`."""

    @property
    @abstractmethod
    def formula(self) -> Callable[[Tensor, Tensor], Tensor]:
        """From scores, `(batch, heads, rows, keys)`, and the first of `key_values`, `(batch, 1, 1, keys)`, to
        edited ones."""

    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        return self.formula(scores, self.columns(context, layer, scores)[0])

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        columns = self.static_columns(context, layer, keys)
        if columns is None:
            return None
        factors, image = columns
        return StaticEdits(
            scores=Edit(self.formula, (factors,)), measure=Edit(image_attention, (image,)), sizes=_SIZES
        )


@dataclass(frozen=True, kw_only=True)
class ScoreEdit(FormulaEdit):
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


def image_attention(before: Tensor, after: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to the image, after an edit and before it, `(batch, heads)` each.

    Args:
        before: weights, `(batch, heads, keys)`.
        after: in the same form.
        image: 1 at image tokens, `(batch, 1, 1, keys)`.
    """
    return (after * image[:, 0]).sum(dim=-1), (before * image[:, 0]).sum(dim=-1)


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
