"""AMBER, generative part: descriptions, whose nouns are looked up in annotations (arXiv 2311.07397)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.protocols import JOIN, TEXT, one_of
from vlmfix.evaluation.tasks.ratios import object_errors

from .dataset import NAME, language_of, samples_of, warn_of_unknown, words_of
from .language import Language
from .metrics import amber_metrics
from .scorer import VARIANTS, Words, read_nouns


class AmberGenerative(Task):
    """Descriptions of pictures, with the share of their nouns that are not there."""

    name: ClassVar = NAME
    settings: ClassVar = {"suffix": TEXT, "join": JOIN, "scorer": one_of(VARIANTS, required=True)}
    running: ClassVar = "descriptions without hallucination"
    baselines: ClassVar = ("baseline.truncate",)
    tradeoff: ClassVar = ("CHAIR", "Cover")

    def samples(self, built: Path) -> list[Sample]:
        samples = samples_of(self.folder, self.protocol)
        warn_of_unknown(samples, self.words)
        # told before any work, if a package is missing
        self.folder.used["language"] = {"name": self.language.name}
        return samples

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        nouns = [noun for noun in self.language.nouns(text) if noun in self.words.vocabulary]
        readings: dict[str, Any] = {
            variant: asdict(
                read_nouns(
                    nouns, sample.target, sample.meta["hallu"], self.words, self.language.similarity, variant
                )
            )
            for variant in VARIANTS
        }
        wrong = list(dict.fromkeys(readings[self.protocol.scorer]["hallucinated"]))
        named = list(dict.fromkeys(nouns))
        told = f"not there: {', '.join(wrong)}" if wrong else f"there: {', '.join(named)}"
        return Score({"nouns": nouns, **readings}, told if named else "names no object", float(not wrong))

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        own = self.protocol.scorer
        parsed: list[Any] = [None if score is None else score.parsed for score in scores]
        words, cut = length_metrics(texts, truncated)
        found = {
            variant: [*amber_metrics(samples, parsed, variant), words]
            for variant in dict.fromkeys([own, *VARIANTS])
        }
        mentions = [
            (noun, noun not in each[own]["hallucinated"]) for each in parsed if each for noun in each["nouns"]
        ]
        return TaskMetrics(metrics=[*found[own], cut], parsers=found, objects=object_errors(mentions))

    def target(self, sample: Sample) -> str:
        return ", ".join(sample.target)

    @cached_property
    def words(self) -> Words:
        """The word lists of the data."""
        return words_of(self.folder)

    @cached_property
    def language(self) -> Language:
        """What reads the descriptions."""
        return language_of(self.folder)
