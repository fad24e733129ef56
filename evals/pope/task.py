"""POPE: is an object in the image, yes or no (arXiv 2305.10355)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_metrics, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

from .dataset import pope_rows, pope_samples
from .repope import corrected_labels


class Pope(YesNoTask):
    """Yes/no questions about objects, in splits that are reported one by one and as their mean.

    Where the data hold RePOPE's labels (`coco_repope_*.json`), the same answers are also judged by these.
    """

    name: ClassVar = "pope"
    parsers: ClassVar = PARSERS
    settings: ClassVar = yes_no_settings(PARSERS)
    corrected: Mapping[str, Verdict] = {}
    """RePOPE's label of each sample that it keeps; no label where the data have none."""

    def samples(self, built: Path) -> list[Sample]:
        if isinstance(self.data, HubData):
            return pope_rows(self.data, self.protocol, built / "pictures")
        samples = pope_samples(self.data, self.protocol, built=built)
        self.corrected = corrected_labels(self.data.root, samples)
        return samples

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
        return found + self._repope(parser, samples, texts)

    def _repope(self, parser: str, samples: Sequence[Sample], texts: Sequence[str | None]) -> list[Metric]:
        """The figures by RePOPE's labels: their mean over the splits, then each split, as groups."""
        if not self.corrected:
            return []
        labels = [self.corrected.get(sample.id) for sample in samples]
        kept = [None if label is None else text for label, text in zip(labels, texts, strict=True)]
        turned = [
            sample if label is None else dataclasses.replace(sample, target=label)
            for sample, label in zip(samples, labels, strict=True)
        ]
        verdicts = [
            None if text is None or label is None else self.parsers[parser](text, label)
            for text, label in zip(kept, labels, strict=True)
        ]
        found = yes_no_metrics(turned, kept, verdicts, recall_of_parsed=parser == "lmms_eval")
        return [dataclasses.replace(each, group=f"RePOPE {each.group}".strip()) for each in found]
