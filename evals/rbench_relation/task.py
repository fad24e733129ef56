"""R-Bench: does a relation hold between two objects, yes or no (arXiv 2406.16449)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.groups import of_each_group
from vlmfix.evaluation.tasks.protocols import one_of
from vlmfix.evaluation.tasks.yes_no import YesNoTask, yes_no_metrics, yes_no_settings
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

from .dataset import LEVELS, MARKINGS, relation_samples


class RBenchRelation(YesNoTask):
    """Questions about relations, at one level; those about the web also by kind of picture."""

    name: ClassVar = "rbench_relation"
    parsers: ClassVar = PARSERS
    settings: ClassVar = {
        **yes_no_settings(PARSERS),
        "level": one_of(LEVELS, required=True),
        "marking": one_of(MARKINGS, default="words"),
    }

    def samples(self, built: Path) -> list[Sample]:
        return relation_samples(self.folder, self.protocol, built / "pictures")

    def parser_metrics(
        self,
        parser: str,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        verdicts: Sequence[Verdict | None],
    ) -> list[Metric]:
        found = yes_no_metrics(samples, texts, verdicts, recall_of_parsed=parser == "lmms_eval")
        [accuracy] = (each for each in found if each.name == "accuracy")
        return [*found, *of_each_group(accuracy, [sample.meta["kind"] for sample in samples])]
