"""POPE: is an object in the image, yes or no (arXiv 2305.10355)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import Verdict, YesNoTask, yes_no_metrics, yes_no_settings

from .dataset import pope_rows, pope_samples
from .parsers import PARSERS


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
            f1 = next(metric for metric in found if metric.name == "F1")
            parts, wholes = (terms.sum(axis=0) for terms in (f1.parts, f1.wholes))
            distinct = _first_times(samples)
            found.append(Metric("Overall", (parts * distinct)[None], (wholes * distinct)[None], "", "higher"))
        return found


def _first_times(samples: Sequence[Sample]) -> np.ndarray:
    """1.0 where a question about an image comes for the first time in its repeat; splits share some."""
    repeats: Counter[str] = Counter()
    seen: set[tuple[str, str, int]] = set()
    first = []
    for sample in samples:
        question = (sample.cluster, sample.prompt, repeats[sample.id])
        repeats[sample.id] += 1
        first.append(question not in seen)
        seen.add(question)
    return np.array(first, dtype=float)
