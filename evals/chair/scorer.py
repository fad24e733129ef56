"""CHAIR: the share of mentioned COCO objects that are not in the image (arXiv 1809.02156)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmfix.evaluation.tasks.ratios import harmonic_mean, ratio, undefined

from .ground_truth import GroundTruth
from .vocabulary import (
    VARIANTS,
    Mention,
    Variant,
    Vocabulary,
)

__all__ = [
    "VARIANTS",
    "CaptionJudgement",
    "GroundTruth",
    "Mention",
    "Score",
    "Variant",
    "Vocabulary",
    "judge",
    "score",
]


@dataclass(frozen=True)
class CaptionJudgement:
    """One caption and what it names.

    Args:
        image_id: COCO id.
        caption: as it was judged.
        mentions: the objects in order, repeated ones included.
        hallucinated: the mentions whose object is not in the image.
        classes: the classes of the mentions, once each, sorted.
        truth: the classes in the image, sorted.
        tokens: words and marks, merged pairs being one.
    """

    image_id: int
    caption: str
    mentions: tuple[Mention, ...]
    hallucinated: tuple[Mention, ...]
    classes: tuple[str, ...]
    truth: tuple[str, ...]
    tokens: int

    @property
    def found(self) -> tuple[str, ...]:
        """The classes that are named and there, sorted."""
        return tuple(name for name in self.classes if name in self.truth)


@dataclass(frozen=True)
class Score:
    """What a set of captions comes to.

    Args:
        captions: number of captions.
        mentions: mentions in all.
        hallucinated_mentions: mentions of objects that are not there.
        hallucinated_captions: captions with at least one of these.
        named: sum over captions of the number of classes named.
        found: of these, the ones that are there.
        there: sum over captions of the number of classes in the image.
        tokens: tokens in all.
        words: pieces between white space in all.
        chair_s: `hallucinated_captions / captions`.
        chair_i: `hallucinated_mentions / mentions`.
        recall: `found / there`.
        precision: `found / named`, over sets: not 1 - `chair_i`.
        f1: harmonic mean of precision and recall.
        length: `tokens / captions`.
        mean_words: `words / captions`.
        undefined: names of the figures with a zero denominator, which are 0.0.
    """

    captions: int
    mentions: int
    hallucinated_mentions: int
    hallucinated_captions: int
    named: int
    found: int
    there: int
    tokens: int
    words: int
    chair_s: float
    chair_i: float
    recall: float
    precision: float
    f1: float
    length: float
    mean_words: float
    undefined: tuple[str, ...]


def judge(caption: str, image_id: int, truth: GroundTruth) -> CaptionJudgement:
    """Compare what a caption names with what is in its image.

    Raises:
        ValueError: if the image is unknown.
    """
    if image_id not in truth.objects:
        raise ValueError(f"image {image_id} is not in the ground truth; give the COCO files that have it")
    there = truth.objects[image_id]
    reading = truth.vocabulary.read(caption)
    return CaptionJudgement(
        image_id=image_id,
        caption=caption,
        mentions=reading.mentions,
        hallucinated=tuple(each for each in reading.mentions if each.category not in there),
        classes=tuple(sorted({each.category for each in reading.mentions})),
        truth=tuple(sorted(there)),
        tokens=reading.tokens,
    )


def score(judgements: Sequence[CaptionJudgement]) -> Score:
    """The figures over captions; one without objects counts among the captions."""
    captions = len(judgements)
    mentions = sum(len(each.mentions) for each in judgements)
    wrong = sum(len(each.hallucinated) for each in judgements)
    wrong_captions = sum(bool(each.hallucinated) for each in judgements)
    named = sum(len(each.classes) for each in judgements)
    found = sum(len(each.found) for each in judgements)
    there = sum(len(each.truth) for each in judgements)
    tokens = sum(each.tokens for each in judgements)
    words = sum(len(each.caption.split()) for each in judgements)
    precision, recall = ratio(found, named), ratio(found, there)
    wholes = {
        "chair_s": captions,
        "chair_i": mentions,
        "recall": there,
        "precision": named,
        "f1": precision + recall,
        "length": captions,
        "mean_words": captions,
    }
    return Score(
        captions=captions,
        mentions=mentions,
        hallucinated_mentions=wrong,
        hallucinated_captions=wrong_captions,
        named=named,
        found=found,
        there=there,
        tokens=tokens,
        words=words,
        chair_s=ratio(wrong_captions, captions),
        chair_i=ratio(wrong, mentions),
        recall=recall,
        precision=precision,
        f1=harmonic_mean(precision, recall),
        length=ratio(tokens, captions),
        mean_words=ratio(words, captions),
        undefined=undefined(wholes),
    )
