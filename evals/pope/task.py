"""POPE: is an object in the image, yes or no (arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_metrics, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

from .dataset import pope_rows, pope_samples


class Pope(YesNoTask):
    """Yes/no questions about objects, in splits that are reported one by one and as their mean."""

    name: ClassVar = "pope"
    parsers: ClassVar = PARSERS
    settings: ClassVar = yes_no_settings(PARSERS)

    def samples(self, built: Path) -> list[Sample]:
        if isinstance(self.data, HubData):
            return pope_rows(self.data, self.protocol, built / "pictures")
        return pope_samples(self.data, self.protocol, built=built)

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        # lmms-eval leaves answers that it cannot read out of the recall.
        found = yes_no_metrics(samples, texts, verdicts, recall_of_parsed=parser == "lmms_eval")
        if parser == "vlmevalkit":
            # Its "Overall" is the F1 of all rows: a question that is in three splits counts three times.
            f1 = next(metric for metric in found if metric.name == "F1")
            parts, wholes = (terms.sum(axis=0)[None] for terms in (f1.parts, f1.wholes))
            found.append(Metric("Overall", parts, wholes, "", "higher"))
        return found
