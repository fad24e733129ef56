"""HumbleBench: multiple choice in which "None of the above" may be right (arXiv 2509.09658)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.protocols import JOIN, TEXT, one_of

from .dataset import data_samples, variant_of
from .figures import figures, raw_e_accuracy
from .letters import PARSERS
from .rows import VARIANTS


class HumbleBench(Task):
    """Questions with the options A to E, of which E rejects all others."""

    name: ClassVar = "humblebench"
    settings: ClassVar = {
        "suffix": TEXT,
        "join": JOIN,
        "parser": one_of(PARSERS, required=True),
        "variant": one_of(VARIANTS, required=True),
    }
    running: ClassVar = "accuracy"

    def samples(self, built: Path) -> list[Sample]:
        return data_samples(self.data, self.protocol, built, self.seed)

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        letter = PARSERS[self.protocol.parser](text, sample.meta["options"])
        return Score(letter, letter or "unparsed", float(letter == sample.target))

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        own = self.protocol.parser
        letters = {own: [None if score is None else score.parsed for score in scores]}
        for name in PARSERS.keys() - {own}:
            letters[name] = [
                None if text is None else PARSERS[name](text, sample.meta["options"])
                for sample, text in zip(samples, texts, strict=True)
            ]
        found = {name: self._figures(name, samples, texts, letters[name]) for name in [own, *PARSERS]}
        return TaskMetrics(
            metrics=[*found[own], *length_metrics(texts, truncated)],
            parsers=found,
            unparsed=sum(score is not None and score.parsed is None for score in scores),
        )

    def _figures(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        letters: Sequence[str | None],
    ) -> list[Metric]:
        labels = [sample.target for sample in samples]
        found = figures(
            letters,
            labels,
            [sample.meta["type"] for sample in samples],
            [text is not None for text in texts],
            variant=variant_of(self.protocol),
        )
        return found if parser != "letter_set" else [*found, raw_e_accuracy(texts, labels)]
