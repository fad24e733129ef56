"""MME: two yes/no questions about each image (arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocols import one_of
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .dataset import mme_samples
from .metrics import mme_metrics
from .parsers import PARSERS
from .subtasks import SUBSETS, sums_of


class Mme(YesNoTask):
    """Pairs of yes/no questions in subtasks, whose scores add up to perception and cognition."""

    name: ClassVar = "mme"
    parsers: ClassVar = PARSERS
    settings: ClassVar = {**yes_no_settings(PARSERS), "subtasks": one_of(SUBSETS, default="all")}

    def samples(self, built: Path) -> list[Sample]:
        return mme_samples(self.folder, self.protocol)

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        there = {sample.meta["split"] for sample in samples}
        return mme_metrics(samples, texts, verdicts, sums_of(self.protocol.own["subtasks"], there))
