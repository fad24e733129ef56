"""Open questions with the answers of ten people (VQA v2, arXiv 1505.00468)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.protocols import JOIN, SWITCH, TEXT, one_of

from . import scorer
from .dataset import OCR_TOKENS, check_answers, vqa_rows, vqa_samples
from .lmms import VqaOfLmms
from .metrics import accuracies


class Vqa(VqaOfLmms, Task):
    """Short answers, right as far as people agree with them."""

    name: ClassVar = "vqa"
    settings: ClassVar = {
        "suffix": TEXT,
        "join": JOIN,
        "capitalize": SWITCH,
        "ocr_tokens": OCR_TOKENS,
        "scorer": one_of(scorer.MODES, required=True),
    }
    running: ClassVar = "right so far"

    def samples(self, built: Path) -> list[Sample]:
        if isinstance(self.data, HubData):
            samples = vqa_rows(self.data, self.protocol, built / "pictures")
        else:
            samples = vqa_samples(self.data, self.protocol)
        check_answers(samples, self.protocol)
        return samples

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        value = scorer.accuracy(text, sample.target, self.protocol.scorer)
        return Score(text.strip(), f"{value:.0%}", value)

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        own = self.protocol.scorer
        modes = accuracies(samples, texts, scores, own)
        return TaskMetrics(metrics=[*modes[own], *length_metrics(texts, truncated)], parsers=modes)

    def target(self, sample: Sample) -> str:
        return ", ".join(f"{answer} ({count})" for answer, count in Counter(sample.target).most_common())
