"""IAT: scores of the text that was generated so far, raised by a share of their size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix.engine.capabilities import MeasuresScores
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import LayerRange
from vlmfix.methods.attention.pai import amplify
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@dataclass(frozen=True, kw_only=True)
class GeneratedTextEdit(LayerRange, ABC):
    """Base of the methods that edit the attention of new rows to generated tokens, the newest included."""

    keeps_prefix: ClassVar = True

    def begin(self, context: DecodeContext) -> None:
        assert self.layers is not None
        context.check_attention(type(self).__name__, range(*self.layers))

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        if context.is_prefill or not context.layout.has_image or not self.edits_layer(layer):
            return None
        return context.layout_at(layer).no_row

    def generated(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        """Generated keys of the sequences that it takes, `(batch, 1, 1, keys)` bool; worked out once a
        step."""
        layout, keys = context.layout_at(layer), weights.shape[-1]
        key = (self, layout, weights.device)
        found: Tensor | None = context.state.get(key)
        if found is None or found.shape[-1] != keys:
            tokens = layout.over_keys(layout.image_tokens & False, keys, generated=self.takes(context))
            found = context.state[key] = tokens.to(weights.device)[:, None, None]
        return found

    def inactive_reason(self, context: DecodeContext) -> str:
        if context.step == 0:
            return "it acts from the second new token on, and there was one; allow more with max_new_tokens"
        return self.idle_reason

    @property
    @abstractmethod
    def idle_reason(self) -> str:
        """Why nothing was edited where there was generated text, and what to do."""


@register_method("iat")
@dataclass(frozen=True, kw_only=True)
class IAT(GeneratedTextEdit, MeasuresScores):
    """Increased attention to generated text (arXiv 2603.04908).

    In new rows, each score of a generated token grows by a share of its own size before the softmax. Objects
    that are there are written with more attention to the text so far than hallucinated ones, and unlike more
    attention to the image this does not make captions repeat themselves. The first token is never edited.

    Args:
        alpha: share of a score's size that is added to it, in [0, 100]; 0 leaves the model as it is.
        layers: see `LayerRange`; published are layers 5 to 17 of 32.
    """

    alpha: float = 0.8

    info = MethodInfo(
        stage="attention",
        changes="scores of generated tokens, raised by a share of their size",
        where="new rows; layers 5 to 17 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2603.04908",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    search_space: ClassVar = {"alpha": Between(0.1, 2, log=True)}
    published_layers: ClassVar = (5, 18)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)

    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        return amplify(scores, self.alpha * self.generated(context, layer, scores).float())

    def measure_scores(self, context: DecodeContext, layer: int, before: Tensor, after: Tensor) -> None:
        text = self.generated(context, layer, after)[:, 0]
        context.measure(self, size=(after * text).sum(dim=-1), before=(before * text).sum(dim=-1))

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {
                "size": "attention to generated text in edited layers; 'before': without any edit"
            }

    @property
    def idle_reason(self) -> str:
        return "the scores of generated tokens in the edited layers are 0, or alpha is too small to tell"
