"""CHAIR: objects in captions that are not in the image (arXiv 1809.02156)."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric, SampleResult
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import drop_incomplete, length_metrics
from vlmfix.evaluation.tasks.lmms import KnownToLmms
from vlmfix.evaluation.tasks.protocols import JOIN, PROMPT, SWITCH, TEXT, count, one_of
from vlmfix.evaluation.tasks.ratios import object_errors

from .dataset import chair_samples
from .image_list import USUAL_IMAGES
from .scorer import GroundTruth, judge
from .tokens import tokens_of_sentences
from .vocabulary import VARIANTS, Vocabulary

_SENTENCES = ("sentence 1", "sentence 2", "sentence 3", "later sentences")


class Chair(KnownToLmms, Task):
    """Captions, whose objects are looked up in the annotations and reference captions of the image."""

    name: ClassVar = "chair"
    settings: ClassVar = {
        "prompt": PROMPT,
        "suffix": TEXT,
        "join": JOIN,
        "scorer": one_of(VARIANTS, required=True),
        "drop_incomplete": SWITCH,
        "subset": TEXT,
        "subset_size": count(),
    }
    running: ClassVar = "captions without hallucination"
    baselines: ClassVar = ("baseline.truncate",)
    tradeoff: ClassVar = ("CHAIRi", "recall")

    def samples(self, built: Path) -> list[Sample]:
        samples = chair_samples(self.folder, self.protocol)
        self.truth(self.protocol.scorer)  # what the scorer refuses is told before any work
        return samples

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        parsed = self._parsed(self.protocol.scorer, sample, text, truncated)
        wrong = parsed["not there"]
        named = f"not there: {', '.join(wrong)}" if wrong else f"there: {', '.join(parsed['named'])}"
        verdict = named if parsed["named"] else "names no object"
        return Score(parsed, verdict, float(not wrong))

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        images = len({sample.cluster for sample in samples})
        if self.protocol.data_set == "coco" and images < USUAL_IMAGES:
            warnings.warn(
                f"CHAIR on {images} images: published figures are over {USUAL_IMAGES} or more, and those of "
                "fewer vary widely",
                stacklevel=2,
            )
        own = self.protocol.scorer
        parsed: dict[str, list[Any]] = {own: [None if score is None else score.parsed for score in scores]}
        for scorer in self._other_scorers:
            if scorer != own:
                parsed[scorer] = [
                    None if text is None else self._parsed(scorer, sample, text, is_truncated)
                    for sample, text, is_truncated in zip(samples, texts, truncated, strict=True)
                ]
        found = {
            scorer: _metrics(each, [len(self._there(scorer, sample)) for sample in samples])
            for scorer, each in parsed.items()
        }
        mentions = [
            (name, name not in each["not there"]) for each in parsed[own] if each for name in each["mentions"]
        ]
        return TaskMetrics(
            metrics=[*found[own], *length_metrics(texts, truncated)],
            parsers=found,
            objects=object_errors(mentions),
        )

    def target(self, sample: Sample) -> str:
        return ", ".join(sorted(self._there(self.protocol.scorer, sample)))

    def lmms_fields(self, sample: Sample, result: SampleResult) -> dict[str, Any]:
        own = {
            "answer": sorted(self._there(self.protocol.scorer, sample)),
            "pred": result.parsed["mentions"],
            "image_id": sample.meta["image_id"],
        }
        return {f"coco_cap_{name}": own for name in ("chair_i", "chair_s", "recall")}

    def _there(self, scorer: str, sample: Sample) -> Collection[str]:
        """The classes in the image."""
        return self.truth(scorer).objects[sample.meta["image_id"]]

    def _parsed(self, scorer: str, sample: Sample, text: str, truncated: bool) -> dict[str, list[Any]]:
        """Mentions in order, the number of the sentence of each, classes named, and those not there."""
        caption = drop_incomplete(text) if truncated and self.protocol.own["drop_incomplete"] else text
        judged = judge(caption, sample.meta["image_id"], self.truth(scorer))
        ends = list(accumulate(map(len, tokens_of_sentences(caption))))
        return {
            "mentions": [mention.category for mention in judged.mentions],
            "sentences": [bisect_right(ends, mention.index) for mention in judged.mentions],
            "named": list(judged.classes),
            "not there": list(dict.fromkeys(mention.category for mention in judged.hallucinated)),
        }

    @cached_property
    def _other_scorers(self) -> list[str]:
        """Those that can be had here beside the protocol's."""
        try:
            Vocabulary(variant="lemma")
        except ImportError:
            return [scorer for scorer in VARIANTS if scorer != "lemma"]
        return list(VARIANTS)

    def truth(self, scorer: str) -> GroundTruth:
        """The classes in each image, and the vocabulary, of a variant of the scorer."""
        if scorer not in self._truths:
            folder = self.folder
            vocabulary = Vocabulary(variant=scorer)
            if folder.synonyms is not None:
                vocabulary = Vocabulary.from_file(folder.synonyms, scorer)
            self._truths[scorer] = GroundTruth.from_files(
                [folder.require("instances", "chair")],
                [] if folder.captions is None else [folder.captions],
                vocabulary=vocabulary,
            )
        return self._truths[scorer]

    @cached_property
    def _truths(self) -> dict[str, GroundTruth]:
        return {}


def _metrics(parsed: Sequence[Mapping[str, Sequence[str]] | None], there: Sequence[int]) -> list[Metric]:
    """The figures of one scorer: what it read in each caption, and the number of classes in each image."""
    answered = np.array([each is not None for each in parsed], dtype=float)
    rows = [
        [0] * 5
        if each is None
        else [
            sum(name in each["not there"] for name in each["mentions"]),
            len(each["mentions"]),
            len(each["named"]) - len(each["not there"]),
            len(each["named"]),
            count,
        ]
        for each, count in zip(parsed, there, strict=True)
    ]
    terms = np.array(rows, dtype=float).reshape(len(parsed), 5)
    wrong, mentions, found, named, classes = terms.T

    def metric(
        name: str, parts: np.ndarray, wholes: np.ndarray, better: Any, *, percent: bool = True
    ) -> Metric:
        return Metric(name, parts[None], wholes[None], better=better, percent=percent)

    by_sentence = _mentions_by_sentence(parsed)
    found_metrics = [
        metric("CHAIRs", (wrong > 0).astype(float), answered, "lower"),
        metric("CHAIRi", wrong, mentions, "lower"),
        metric("recall", found, classes, "higher"),
        metric("precision", found, named, "higher"),
        metric("F1", 2 * found, named + classes, "higher"),
        metric("mentions", mentions, answered, "", percent=False),
    ]
    for group, (own_wrong, own_mentions) in by_sentence.items():
        found_metrics.append(Metric("CHAIRi", own_wrong[None], own_mentions[None], group, "lower"))
    return found_metrics


def _mentions_by_sentence(
    parsed: Sequence[Mapping[str, Sequence[Any]] | None],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Hallucinated mentions and mentions of each caption, by the sentence that they stand in; captions go on
    inventing as they go on. Sentences without any mention are left out."""
    counts = np.zeros((2, len(_SENTENCES), len(parsed)))
    for index, each in enumerate(parsed):
        if each is not None:
            for name, sentence in zip(each["mentions"], each["sentences"], strict=True):
                place = min(sentence, len(_SENTENCES) - 1)
                counts[:, place, index] += name in each["not there"], 1
    return {
        group: (counts[0, place], counts[1, place])
        for place, group in enumerate(_SENTENCES)
        if counts[1, place].any()
    }
