"""Finding the heads that make a model name objects that are not there, for AD-HH."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.calibration.head_lists import choose, rank
from vlmfix.calibration.object_tokens import Caption, HeadReader, ObjectTokens
from vlmfix.calibration.results import PROMPT, Calibration, Progress
from vlmfix.inference.batch import answer_batch
from vlmfix.inference.chat import text_and_spans
from vlmfix.inference.conversation import Conversation
from vlmfix.inference.decoding import plain_decoding
from vlmfix.inference.pictures import ImageLike

READS = 3
"""How often each picture is read."""

_CAPTION = {"max_new_tokens": 128}
_BATCH = 8

# Fewer hallucinated objects are worth a warning.
_FIRM = 50


class ObjectWord(NamedTuple):
    """An object that a caption names.

    Args:
        start: place of the first character of the word in the caption.
        hallucinated: whether the object is not in the picture.
    """

    start: int
    hallucinated: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture whose captions can be judged.

    Args:
        image: the picture, or its path.
        judge: finds the objects that a caption of it names.
    """

    image: ImageLike
    judge: Callable[[str], Sequence[ObjectWord]]


def calibrate_heads(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[AnnotatedImage],
    progress: Progress,
) -> Calibration:
    """Find the hallucination heads for AD-HH (github.com/TianyunYoung/Hallucination-Attribution, ICLR 2025).

    The model captions each picture. A head has as large an effect on an object that it names as the
    probability of the word's first token falls without the head. The heads with the largest mean effect on
    hallucinated objects, less that on correct ones, are listed.

    This library's own: a silenced head gives zeros in the row that predicts the token, and nowhere else. On
    one half of the pictures, heads are ranked by a first-order estimate of their effects (arXiv 1905.10650),
    and the best of them again by silencing one at a time. On the other half the best are silenced together,
    which says how many to list, and so are random heads of the same layers, which the list has to beat.

    Args:
        model: a stock model.
        processor: its processor.
        images: 100 or more.
        progress: called with the number of pictures just read; each is read `READS` times.

    Returns:
        The list, and in the findings what it does on the pictures that it was not found on.

    Raises:
        ValueError: the pictures are not annotated, the captions name too few hallucinated or correct objects,
            or no heads have a larger effect on hallucinated objects than on correct ones.
    """
    progress = progress or (lambda count: None)
    captions = judged_captions("adhh", model, processor, images, progress, reads=READS)
    wrong = sum(sum(each.hallucinated) for each in captions)
    right = sum(len(each.hallucinated) for each in captions) - wrong
    captions.sort(key=lambda each: -sum(each.hallucinated))  # each half gets as many hallucinated objects
    halves = ObjectTokens(captions[::2]), ObjectTokens(captions[1::2])
    if not all(half.has_both for half in halves):
        raise ValueError(
            f"{len(images)} captions name {wrong} hallucinated and {right} correct objects, but both kinds "
            "are needed in each half of the pictures; give more pictures, or such as the model gets wrong"
        )
    if wrong < _FIRM:
        warnings.warn(
            f"the captions name {wrong} hallucinated objects; rankings are firm from about {_FIRM} on, so "
            "give more pictures",
            stacklevel=2,
        )
    reader = HeadReader(model, processor, progress)
    ranked = rank(reader, *halves)
    kept, of_list = choose(reader, halves[1], ranked.order)
    heads, gain = ranked.order[:kept], of_list["gain on held-out pictures"]
    return Calibration(
        {"adhh_heads": [list(head) for head in heads]},
        f"{len(images)} captions with {wrong} hallucinated and {right} correct objects: heads whose silence "
        "lowers the probability of hallucinated objects the most, compared with that of correct ones "
        f"(by {gain} together on held-out pictures)",
        {"hallucinated object tokens": wrong, "correct object tokens": right}
        | of_list
        | ranked.findings(kept),
        {"adhh_heads": [list(head) for head in ranked.silenced]},
    )


def judged_captions(
    method: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[AnnotatedImage],
    progress: Callable[[int], object],
    *,
    reads: int,
) -> list[Caption]:
    """Greedy captions that name objects.

    Args:
        method: that is calibrated.
        progress: called with 1 for each picture, or with `reads` where its caption names no object.

    Raises:
        ValueError: the pictures are not annotated.
    """
    if not all(isinstance(each, AnnotatedImage) for each in images):
        raise ValueError(
            f"{method} is calibrated on captions that can be judged; give AnnotatedImage objects (on the "
            "command line a COCO folder with instances, as 'vlmfix scenes' writes)"
        )
    found = []
    decoding = plain_decoding(model, _CAPTION)
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        prompts = [Conversation.of(each.image, PROMPT) for each in batch]
        answers = answer_batch(model, processor, prompts, **decoding)
        for each, answer in zip(batch, answers, strict=True):
            text, spans = text_and_spans(answer.token_ids, processor, skip_special_tokens=True)
            reasoned = spans[answer.reasoning_tokens - 1][1] if answer.reasoning_tokens else 0
            words = [word for word in each.judge(text) if word.start >= reasoned]
            places = [
                next(place for place, (_, end) in enumerate(spans) if end > word.start) for word in words
            ]
            if words:
                wrong = [word.hallucinated for word in words]
                found.append(Caption(each.image, answer.token_ids, places, wrong))
            progress(1 if words else reads)
    return found
