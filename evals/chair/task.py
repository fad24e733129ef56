"""CHAIR: objects in captions that are not in the image (arXiv 1809.02156)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData, hub_items
from vlmfix.evaluation.datasets.items import chair_items
from vlmfix.evaluation.tasks.base import (
    Item,
    Judgement,
    Scores,
    Task,
)
from vlmfix.evaluation.tasks.lengths import length_metrics

from .scorer import (
    CaptionJudgement,
    GroundTruth,
    drop_incomplete,
    judge,
    object_errors,
)
from .vocabulary import VARIANTS, Vocabulary


class Chair(Task):
    """Captions, whose objects are looked up in the annotations and reference captions of the image."""

    name: ClassVar = "chair"
    running: ClassVar = "captions without hallucination"
    controls: ClassVar = ("baseline.truncate",)
    tradeoff: ClassVar = ("CHAIRi", "recall")

    def items(self, built: Path) -> list[Item]:
        if isinstance(self.data, HubData):
            return hub_items(self.data, self.protocol, built)
        items = chair_items(self.data, self.protocol)
        self._truth(self.protocol.scorer)  # what the scorer refuses is told before any work
        return items

    def judge(self, item: Item, text: str, *, cut: bool) -> Judgement:
        judged = self._judged(self.protocol.scorer, item, text, cut)
        wrong = list(dict.fromkeys(mention.category for mention in judged.hallucinated))
        named = f"not there: {', '.join(wrong)}" if wrong else f"there: {', '.join(judged.classes)}"
        verdict = named if judged.classes else "names no object"
        return Judgement({"named": list(judged.classes), "not there": wrong}, verdict, float(not wrong))

    def scores(self, items: Sequence[Item], texts: Sequence[str | None], cut: Sequence[bool]) -> Scores:
        found = {}
        for scorer in dict.fromkeys([self.protocol.scorer, *self._other_scorers]):
            judged = [
                None if text is None else self._judged(scorer, item, text, is_cut)
                for item, text, is_cut in zip(items, texts, cut, strict=True)
            ]
            found[scorer] = _metrics(judged)
            if scorer == self.protocol.scorer:
                objects = object_errors([each for each in judged if each is not None])
        headline = found[self.protocol.scorer]
        return Scores(metrics=[*headline, *length_metrics(texts, cut)], parsers=found, objects=objects)

    def gold(self, item: Item) -> str:
        return ", ".join(sorted(self._truth(self.protocol.scorer).objects[item.meta["image_id"]]))

    def _judged(self, scorer: str, item: Item, text: str, cut: bool) -> CaptionJudgement:
        caption = drop_incomplete(text) if cut and self.protocol.drop_incomplete else text
        return judge(caption, item.meta["image_id"], self._truth(scorer))

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
