"""DASH-B: can the model see an object that is not there, yes or no (arXiv 2503.23573)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .dataset import PROMPT, dash_rows, dash_samples
from .metrics import dash_metrics
from .parsers import PARSERS


class DashB(YesNoTask):
    """One question about each picture; the cluster of a sample is its object, not its picture."""

    name: ClassVar = "dash_b"
    unit: ClassVar = "object"
    parsers: ClassVar = PARSERS
    settings: ClassVar = {"prompt": PROMPT, **yes_no_settings(PARSERS)}
    tradeoff: ClassVar = ("false-yes rate", "TPR")

    def samples(self, built: Path) -> list[Sample]:
        if isinstance(self.data, HubData):
            return dash_rows(self.data, self.protocol, built / "pictures")
        return dash_samples(self.data, self.protocol)

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        return dash_metrics(samples, texts, verdicts)
