"""CHAIR: objects in captions that are not in the image (arXiv 1809.02156)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import drop_incomplete, length_metrics
from vlmfix.evaluation.tasks.protocols import JOIN, PROMPT, SWITCH, TEXT, count, one_of

from .dataset import chair_samples
from .scorer import CaptionJudgement, GroundTruth, judge, object_errors
from .vocabulary import VARIANTS, Vocabulary


class Chair(Task):
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
        if isinstance(self.data, HubData):
            raise ValueError(
                f"chair cannot use the data set {self.data.name}: it needs instances and captions of COCO; "
                "give data: {root: FOLDER}"
            )
        samples = chair_samples(self.data, self.protocol)
        self._truth(self.protocol.scorer)  # what the scorer refuses is told before any work
        return samples

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        judged = self._judged(self.protocol.scorer, sample, text, truncated)
        wrong = list(dict.fromkeys(mention.category for mention in judged.hallucinated))
        named = f"not there: {', '.join(wrong)}" if wrong else f"there: {', '.join(judged.classes)}"
        verdict = named if judged.classes else "names no object"
        return Score({"named": list(judged.classes), "not there": wrong}, verdict, float(not wrong))

    def scores(
        self, samples: Sequence[Sample], texts: Sequence[str | None], truncated: Sequence[bool]
    ) -> TaskMetrics:
        found = {}
        for scorer in dict.fromkeys([self.protocol.scorer, *self._other_scorers]):
            judged = [
                None if text is None else self._judged(scorer, sample, text, is_truncated)
                for sample, text, is_truncated in zip(samples, texts, truncated, strict=True)
            ]
            found[scorer] = _metrics(judged)
            if scorer == self.protocol.scorer:
                objects = object_errors([each for each in judged if each is not None])
        headline = found[self.protocol.scorer]
        return TaskMetrics(
            metrics=[*headline, *length_metrics(texts, truncated)], parsers=found, objects=objects
        )

    def target(self, sample: Sample) -> str:
        return ", ".join(sorted(self._truth(self.protocol.scorer).objects[sample.meta["image_id"]]))

    def _judged(self, scorer: str, sample: Sample, text: str, truncated: bool) -> CaptionJudgement:
        caption = drop_incomplete(text) if truncated and self.protocol.own["drop_incomplete"] else text
        return judge(caption, sample.meta["image_id"], self._truth(scorer))

    @cached_property
    def _other_scorers(self) -> list[str]:
        """Those that can be had here beside the protocol's."""
        try:
            Vocabulary(variant="lemma")
        except ImportError:
            return [scorer for scorer in VARIANTS if scorer != "lemma"]
        return list(VARIANTS)

    def _truth(self, scorer: str) -> GroundTruth:
        if scorer not in self._truths:
            folder = self.data
            assert isinstance(folder, DataFolder)
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


def _metrics(judged: Sequence[CaptionJudgement | None]) -> list[Metric]:
    """The figures of one scorer."""
    answered = np.array([each is not None for each in judged], dtype=float)
    rows = [
        [0] * 5
        if each is None
        else [len(each.hallucinated), len(each.mentions), len(each.found), len(each.classes), len(each.truth)]
        for each in judged
    ]
    terms = np.array(rows, dtype=float).reshape(len(judged), 5)
    wrong, mentions, found, named, there = terms.T

    def metric(
        name: str, parts: np.ndarray, wholes: np.ndarray, better: Any, *, percent: bool = True
    ) -> Metric:
        return Metric(name, parts[None], wholes[None], better=better, percent=percent)

    return [
        metric("CHAIRs", (wrong > 0).astype(float), answered, "lower"),
        metric("CHAIRi", wrong, mentions, "lower"),
        metric("recall", found, there, "higher"),
        metric("precision", found, named, "higher"),
        metric("F1", 2 * found, named + there, "higher"),
        metric("mentions", mentions, answered, "", percent=False),
    ]
