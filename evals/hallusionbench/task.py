"""HallusionBench: yes/no questions on original and edited figures, in sets (arXiv 2310.14566)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, TaskMetrics
from vlmfix.evaluation.tasks.protocols import one_of
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_metrics, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

from .dataset import FILES, file_samples
from .figures import RULES, figures, is_right, without_image

JUDGE = "official_judge"
"""Beside the parsers: the figures by the verdicts of a judge that a file of answers holds."""

_BIAS = ("yes ratio", "recall", "false-yes rate", "unparsed")


class HallusionBench(YesNoTask):
    """Questions that are right one by one (aAcc), on all of a figure (fAcc), and on all figures (qAcc)."""

    name: ClassVar = "hallusionbench"
    unit: ClassVar = "set"
    parsers: ClassVar = PARSERS
    settings: ClassVar = yes_no_settings(PARSERS) | {"rule": one_of(RULES, required=True)}

    def samples(self, built: Path) -> list[Sample]:
        if self.folder.is_synthetic:
            from .scenes import build

            path = build(self.folder, built)
        else:
            path = self.folder.find_file(self.name, *FILES)
        return file_samples(self.folder, path, self.protocol)

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        score = super().judge(sample, text, truncated=truncated)
        if score.parsed is None and self._unclear_allowed(sample):
            return Score(None, "unparsed, which is right without a picture", 1.0)
        return score

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        found = super().metrics(samples, texts, truncated, scores)
        if not any("judge" in sample.meta for sample in samples):
            return found
        judged = [
            None
            if text is None or "judge" not in sample.meta
            else sample.meta["judge"] == "right"
            or (sample.meta["judge"] == "unclear" and without_image(sample.meta))
            for sample, text in zip(samples, texts, strict=True)
        ]
        parsers = {**found.parsers, JUDGE: figures(samples, judged)}
        return TaskMetrics(
            metrics=found.metrics, parsers=parsers, objects=found.objects, unparsed=found.unparsed
        )

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        right = [
            None
            if text is None
            else is_right(verdict, sample.target, unclear_allowed=self._unclear_allowed(sample))
            for sample, text, verdict in zip(samples, texts, verdicts, strict=True)
        ]
        bias = yes_no_metrics(samples, texts, verdicts)
        return figures(samples, right) + [metric for metric in bias if metric.name in _BIAS]

    def _unclear_allowed(self, sample: Sample) -> bool:
        return self.protocol.own["rule"] == "parse_all" and without_image(sample.meta)
