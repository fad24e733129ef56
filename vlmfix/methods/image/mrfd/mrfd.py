"""MRFD: one answer from several views of the picture, each weighted by its agreement with the others."""

from __future__ import annotations

import dataclasses
import string
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from PIL import Image
from transformers import LogitsProcessorList, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmfix.engine import tokens
from vlmfix.engine.vision_cache import cached_vision
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.keywords import asks_yes_or_no
from vlmfix.inference.pictures import ImageLike
from vlmfix.inference.rendering import model_inputs, without_placeholders
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.image.maps import attached_to, locate, map_pass
from vlmfix.methods.image.mrfd.fusion import (
    AnswerDistribution,
    FusedScores,
    agreement_weights,
    divergences,
    sampling_of,
)
from vlmfix.methods.image.mrfd.views import (
    FusedAnswer,
    View,
    cells,
    pixel_box,
    widest,
    window_side,
    windows,
)
from vlmfix.methods.multi_pass import MultiPassMethod
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range, check_whole, layer_indices, shown
from vlmfix.models.profiles import Profile, find_profile

WHOLE, PART = "the whole scene", "one part of the scene"
_PLACES = {"part", "response", "question"}

REGION_PROMPT = (
    "The picture shows {part}. A first look at it gave this answer, which may be wrong: {response} Look "
    "again at what can be seen, and give the final answer. {question}"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Look:
    """The views of a prompt before their answers: original, map, and boxes of the windows."""

    original: Image.Image
    saliency: Any
    boxes: list[tuple[int, int, int, int]]


@register_method("mrfd")
@dataclass(frozen=True, kw_only=True)
class MRFD(MultiPassMethod[FusedAnswer]):
    """Multi-Region Fusion Decoding (arXiv 2508.10264), a reconstruction from the abstract and the figures.

    The attention of the prompt's last row to the image says where to look. The whole picture and the windows
    with the most attention are views; each is answered alone, and the better its answer agrees with the
    others, by the Jensen-Shannon divergence of what the answers are drawn from, the more it weighs. The final
    answer is written by all views at once, one batch: each with its own answer in the prompt, and the token
    from the weighted mean of their log-probabilities.

    The order of the steps is the paper's. **Neither its body nor its code was at hand: all constants, the
    shape of the windows and the prompt are this library's own, so that its numbers must not be compared with
    published ones.** Rules that are made here:

    - A question that wants a yes or no (it says so, or begins with an auxiliary verb) is compared by the
      first token of each answer, and its first answers are that token.
    - Of several pictures, the one with the most attention is cut into views; the others stay in each prompt.
    - Of a picture in tiles, windows lie on the block of tokens that covers most of it.
    - The first answers are greedy; the final one is drawn as asked, without beams.

    Args:
        num_views: whole picture and windows, 1 to 16; 1 leaves the model as it is.
        saliency_layers: layers whose attention is read, 0-based; None: the middle third of the depth.
        window_fraction: side of a window as a share of the shorter side of the token grid, in (0, 1].
        max_window_iou: intersection over union that two windows may have, in [0, 1].
        weight_temperature: divides the divergences before the softmax that gives the weights, in [0.01, 100];
            the higher, the more alike the weights.
        response_tokens: length limit of the first answers, in tokens.
        region_prompt: what is asked in the end: a text with the place {question}, and {part} ("the whole
            scene" or "one part of the scene") and {response} (the first answer of the view) where they shall
            be told. Models that know few prompts (the embedded ones) write captions only to "{question}".
    """

    num_views: int = 4
    saliency_layers: tuple[int, ...] | None = None
    window_fraction: float = 0.5
    max_window_iou: float = 0.5
    weight_temperature: float = 0.15
    response_tokens: int = 64
    region_prompt: str = REGION_PROMPT

    info: ClassVar = MethodInfo(
        stage="image",
        changes="logits: those of the whole image and of salient windows, fused by their agreement",
        where="one map pass, an answer for each view, and the final answer, a row for each view",
        forwards=8.0,
        provenance="reconstruction",
        paper="2508.10264",
        decoding="greedy, sampling, one prompt at a time",
    )
    identity_parameters: ClassVar = {"num_views": 1}
    identity_reason: ClassVar = "num_views is 1"
    result_class: ClassVar = FusedAnswer

    def __post_init__(self) -> None:
        check_whole("num_views", self.num_views, 1, 16)
        if self.saliency_layers is not None:
            layers = layer_indices("saliency_layers", self.saliency_layers)
            if not layers:
                raise ValueError("saliency_layers is empty; it must hold one or more layer indices")
            object.__setattr__(self, "saliency_layers", layers)
        check_range("window_fraction", self.window_fraction, 1e-3, 1)
        check_range("max_window_iou", self.max_window_iou, 0, 1)
        check_range("weight_temperature", self.weight_temperature, 0.01, 100)
        check_whole("response_tokens", self.response_tokens, 1)
        _check_prompt(self.region_prompt)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        layers = self.saliency_layers
        if layers is None:
            first = round(depth / 3)
            layers = tuple(range(first, max(first + 1, round(2 * depth / 3))))
        if layers[-1] >= depth:
            raise ValueError(
                f"saliency_layers has {layers[-1]}; the layers of this model go from 0 to {depth - 1}"
            )
        return dataclasses.replace(self, saliency_layers=layers)

    def ask(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asked: Conversation,
        generate_kwargs: dict[str, Any],
    ) -> FusedAnswer:
        """The answer from all views; logits processors of the caller act on the fused scores."""
        sampling = sampling_of(model, generate_kwargs, "MRFD")
        with cached_vision(model):
            look = self._look(model, processor, asked)
            return self._fused(model, processor, asked, look, sampling, generate_kwargs)

    def _look(self, model: PreTrainedModel, processor: ProcessorMixin, asked: Conversation) -> _Look:
        """The map pass, and the windows."""
        attached_to(model, "MRFD")
        layers = self.resolved(model.config, find_profile(model)).saliency_layers
        assert layers is not None
        pictures = [picture for picture in asked.pictures if isinstance(picture, Image.Image)]
        inputs = model_inputs([asked], processor)
        located = locate(model, processor, inputs, pictures)
        attention = map_pass(model, processor, inputs, layers, 1, "MRFD").attention
        by_picture = attention.mean(dim=(0, 1)).split([image.count for image in located])
        chosen = max(asked.asked_about, key=lambda place: float(by_picture[place].sum()))
        original, grid = pictures[chosen], widest(located[chosen])
        saliency = cells(by_picture[chosen], grid, original.size)
        corners = windows(
            saliency,
            count=self.num_views - 1,
            window_fraction=self.window_fraction,
            max_window_iou=self.max_window_iou,
        )
        side = window_side(saliency.shape, self.window_fraction)
        boxes = [pixel_box(corner, side, grid, original.size) for corner in corners]
        return _Look(original=original, saliency=saliency, boxes=[box for box in boxes if box is not None])

    def _fused(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        asked: Conversation,
        look: _Look,
        sampling: list[Any] | None,
        kwargs: dict[str, Any],
    ) -> FusedAnswer:
        """The answers of all views, and the one from all of them."""
        boxes = [(0, 0, *look.original.size), *look.boxes]
        images = [look.original, *(look.original.crop(box) for box in look.boxes)]
        views = [asked.showing(partial(_replaced, look.original, image)) for image in images]
        greedy = plain_decoding(model, {"max_new_tokens": self._response_tokens(asked)})
        seen = AnswerDistribution(tokens.end_tokens(model, greedy))
        answers = answer_batch(model, processor, views, **greedy, logits_processor=[seen])
        responses = [without_placeholders(answer.text, processor).strip() for answer in answers]
        divergence = divergences(seen.mean)
        weights = agreement_weights(divergence, self.weight_temperature)
        parts = [WHOLE, *[PART] * len(look.boxes)]
        finally_asked = [
            view.asking(partial(self._region_prompt, part, response))
            for view, part, response in zip(views, parts, responses, strict=True)
        ]
        processors = kwargs.pop("logits_processor", None) or ()
        fused = FusedScores(weights.float(), list(processors), sampling)
        final = answer_batch(
            model, processor, finally_asked, **kwargs, logits_processor=LogitsProcessorList([fused])
        )[0]
        found = zip(boxes, images, responses, divergence.tolist(), weights.tolist(), strict=True)
        return FusedAnswer(
            answer=final.text.strip(),
            final=final,
            original=look.original,
            saliency=look.saliency,
            views=tuple(
                View(box=box, image=image, response=response, divergence=far, weight=weight)
                for box, image, response, far, weight in found
            ),
            fused=True,
        )

    def _region_prompt(self, part: str, response: str, question: str) -> str:
        return self.region_prompt.format(part=part, response=response, question=question)

    def _response_tokens(self, asked: Conversation) -> int:
        return 1 if asks_yes_or_no(asked.question.text) else self.response_tokens


def _replaced(original: ImageLike, view: Image.Image, picture: ImageLike) -> ImageLike:
    """A picture of the prompt in a view."""
    return view if picture is original else picture


def _check_prompt(text: Any) -> None:
    """Refuse a prompt that leaves out the question.

    Raises:
        ValueError: it is no text, lacks the question, or has other places.
    """
    places: set[str | None] = set()
    if isinstance(text, str):
        with suppress(ValueError):  # a brace that is not closed
            places = {place for _, place, _, _ in string.Formatter().parse(text)} - {None}
    if "question" not in places or not places <= _PLACES:
        raise ValueError(
            f"region_prompt is {shown(text)}; it must be a text with the place {{question}}, and may have "
            "{part} and {response}"
        )
