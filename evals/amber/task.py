"""AMBER, discriminative part: yes/no questions in which no is the positive class (arXiv 2311.07397)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .dataset import amber_samples
from .metrics import amber_metrics
from .parsers import PARSERS


class Amber(YesNoTask):
    """Yes/no questions about existence, attributes and relations."""

    name: ClassVar = "amber"
    parsers: ClassVar = PARSERS
    settings: ClassVar = yes_no_settings(PARSERS)
    tradeoff: ClassVar = ("false-yes rate", "recall of yes")

    def samples(self, built: Path) -> list[Sample]:
        return amber_samples(self.folder, self.protocol)

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        return amber_metrics(samples, texts, verdicts)
