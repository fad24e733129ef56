"""Attention that a prompt draws to its pictures, read in passes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.engine import compatibility, kernels, tokens
from vlmfix.engine.capabilities import PrunesTokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.modules import input_device
from vlmfix.errors import UnsupportedError
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.keywords import content_words
from vlmfix.methods.base import Method
from vlmfix.models.image_grid.families import place, token_grids
from vlmfix.models.image_grid.grids import ImageTokens
from vlmfix.models.structure import text_decoder


def attached_to(model: PreTrainedModel, reader: str) -> Sequence[MethodHooks]:
    """The methods that act in the passes of a method that reads maps.

    Args:
        model: a stock model.
        reader: of the maps, for messages.

    Raises:
        UnsupportedError: the model is not supported, or one of them drops image tokens.
    """
    compatibility.check_model(model)
    attachment = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
    attached: Sequence[MethodHooks] = () if attachment is None else attachment.methods
    for other in attached:
        if isinstance(other, PrunesTokens):
            raise UnsupportedError(
                f"{reader} needs the attention on all image tokens, and {type(other).__name__} drops some; "
                "use one of them"
            )
    return attached


def locate(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: Mapping[str, Any], pictures: list[Image.Image]
) -> list[ImageTokens]:
    """The images of a prompt of one, with the boxes of their tokens.

    Raises:
        UnsupportedError: where the tokens lie is not known exactly for this model or processor.
    """
    image_tokens = inputs["input_ids"] == tokens.image_token(model.config)
    (images,) = token_grids(model.config, inputs, image_tokens)
    sizes = [picture.size for picture in pictures]
    return place(images, model.config, processor.image_processor, sizes)


class MapPass(NamedTuple):
    """What a map pass gave.

    Args:
        attention: to the image tokens, `(layers, steps, tokens)` float32 on the CPU.
        answer: what the model wrote.
        content: which steps wrote a token of a content word, `(steps,)` bool.
    """

    attention: Tensor
    answer: str
    content: Tensor


def map_pass(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Any,
    layers: tuple[int, ...],
    max_tokens: int,
    reader: str,
) -> MapPass:
    """Greedy answer to a prompt of one, and the image attention of its steps.

    Args:
        inputs: of the processor.
        layers: where to look.
        max_tokens: length limit of the answer.
        reader: of the map, for messages.

    Raises:
        UnsupportedError: a layer does not attend.
    """
    inputs = inputs.to(input_device(model), dtype=model.dtype)
    observer = _LastRowAttention(layers=layers, reader=reader)
    greedy = plain_decoding(model, {"max_new_tokens": max_tokens})
    with observer(model):
        generate: Any = model.generate  # of GenerationMixin, unknown to the type of the model
        output = generate(**inputs, **greedy)
    new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    text = processor.batch_decode([new_tokens], skip_special_tokens=True)[0].strip()
    return MapPass(observer.maps(), text, content_tokens(processor, new_tokens))


def content_tokens(processor: Any, token_ids: Sequence[int]) -> Tensor:
    """Which tokens of a text belong to content words, `(tokens,)` bool: to those that are no English function
    words, punctuation or special tokens.

    Args:
        processor: of the model.
        token_ids: of the text.
    """
    ends = [
        len(processor.batch_decode([token_ids[:stop]], skip_special_tokens=True)[0])
        for stop in range(len(token_ids) + 1)
    ]
    text = processor.batch_decode([token_ids], skip_special_tokens=True)[0]
    spans = content_words(text)
    return torch.tensor(
        [
            any(start < stop and first < stop and start < last for first, last in spans)
            for start, stop in pairwise(ends)
        ],
        dtype=torch.bool,
    )


def phrase_map(attention: Tensor, content: Tensor) -> Tensor:
    """Mean over the steps that write content words, `(layers, tokens)`; over all steps without any.

    After RefAM (arXiv 2509.22650), which leaves stop words out of maps of phrases in diffusion transformers;
    for the attention of a language model that is a reconstruction. Its appended words are not: in a causal
    model they see everything, or change the answer.

    Args:
        attention: `(layers, steps, tokens)`.
        content: of which steps, `(steps,)` bool.
    """
    return attention[:, content if bool(content.any()) else ~content].mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class _LastRowAttention(Method):
    """Sees the image attention of the row that predicts each token, averaged over the heads; changes nothing.

    Args:
        layers: where to look.
        reader: for messages.
        seen: by layer, the rows of the steps, `(image tokens,)` each.
    """

    edits: ClassVar = False

    layers: tuple[int, ...]
    reader: str
    seen: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)

    def begin(self, context: DecodeContext) -> None:
        context.check_attention(self.reader, self.layers, all_of_them=True)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout_at(layer).last_row if layer in self.layers else None

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        if layer not in self.layers:
            return
        key = self, layer
        if key not in context.state:
            columns = context.layout_at(layer).image_tokens[0].nonzero().squeeze(1)
            context.state[key] = columns.to(weights.device)
        self.seen.setdefault(layer, []).append(weights[0, :, -1].mean(dim=0)[context.state[key]])

    def maps(self) -> Tensor:
        """What was seen, `(layers, steps, image tokens)` float32 on the CPU."""
        return torch.stack([torch.stack(self.seen[layer]) for layer in self.layers]).cpu()
