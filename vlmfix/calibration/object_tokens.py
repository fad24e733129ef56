"""Object tokens of captions, and what heads do to them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.caption_rows import CaptionRows
from vlmfix.calibration.head_statistics import Head, head_mask
from vlmfix.calibration.results import PROMPT, prompt_inputs
from vlmfix.inference.pictures import ImageLike


class Caption(NamedTuple):
    """A caption that names objects.

    Args:
        image: what it is of.
        token_ids: of the caption.
        places: of the first token of each object's word.
        hallucinated: which of the objects are not there.
    """

    image: ImageLike
    token_ids: tuple[int, ...]
    places: list[int]
    hallucinated: list[bool]


@dataclass(frozen=True)
class ObjectTokens:
    """Captions, and their object tokens in one row."""

    captions: Sequence[Caption]

    @cached_property
    def hallucinated(self) -> Tensor:
        """Which objects are not there, `(tokens,)` bool."""
        return torch.tensor([each for caption in self.captions for each in caption.hallucinated]).bool()

    @cached_property
    def images(self) -> Tensor:
        """Number of the caption of each token, `(tokens,)` int64."""
        return torch.arange(len(self.captions)).repeat_interleave(
            torch.tensor([len(each.places) for each in self.captions])
        )

    @property
    def has_both(self) -> bool:
        """Whether there are hallucinated and correct objects."""
        return 0 < int(self.hallucinated.sum()) < len(self.hallucinated)

    def first(self, tokens: int) -> ObjectTokens:
        """As many captions as have so many tokens, and objects of both kinds."""
        prefixes = (ObjectTokens(self.captions[:count]) for count in range(1, len(self.captions)))
        return next((each for each in prefixes if each.has_both and len(each.hallucinated) >= tokens), self)


class HeadReader:
    """A model that reads captions again under other heads.

    Args:
        model: a stock model.
        processor: its processor.
        progress: called with the number of pictures just read.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, progress: Callable[[int], object]
    ) -> None:
        self._model, self._processor, self._progress = model, processor, progress
        config = model.config.get_text_config()
        self.shape: Head = config.num_hidden_layers, config.num_attention_heads
        self.heads: list[Head] = list(itertools.product(range(self.shape[0]), range(self.shape[1])))

    def estimates(self, captions: ObjectTokens) -> tuple[Tensor, Tensor]:
        """First-order effects of each head `(tokens, heads)`, and probabilities `(tokens,)`."""
        found = []
        for caption in captions.captions:
            found.append(self._rows(caption).first_order(caption.places))
            self._progress(1)
        effects, probabilities = zip(*found, strict=True)
        return torch.cat(effects).flatten(1), torch.cat(probabilities)

    def exact(self, captions: ObjectTokens, lists: Tensor, *, counts: bool = True) -> Tensor:
        """Effects of lists of heads, `(lists, layers, heads)` bool, on the tokens, `(tokens, lists)`."""
        found = []
        for caption in captions.captions:
            found.append(self._rows(caption).exact(caption.places, lists))
            self._progress(int(counts))
        return torch.cat(found)

    def each_alone(self, heads: Sequence[Head]) -> Tensor:
        """Lists of one head, `(heads, layers, heads)` bool."""
        return head_mask([[head] for head in heads], self.shape)

    def _rows(self, caption: Caption) -> CaptionRows:
        inputs = prompt_inputs(self._model, self._processor, caption.image, PROMPT)
        return CaptionRows(self._model, inputs, caption.token_ids)
