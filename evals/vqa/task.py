"""Open questions with the answers of ten people (VQA v2, arXiv 1505.00468)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.files.readers import examples
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.protocols import JOIN, SWITCH, TEXT, Setting, one_of

from . import scorer
from .dataset import vqa_rows, vqa_samples


class Vqa(Task):
    """Short answers, right as far as people agree with them."""

    name: ClassVar = "vqa"
    settings: ClassVar = {
        "suffix": TEXT,
        "join": JOIN,
        "capitalize": SWITCH,
        "ocr_tokens": Setting(
            lambda value: value == "none", "none: text found in images is not offered", default="none"
        ),
        "scorer": one_of(scorer.MODES, required=True),
    }
    running: ClassVar = "accuracy"

    def samples(self, built: Path) -> list[Sample]:
        if isinstance(self.data, HubData):
            samples = vqa_rows(self.data, self.protocol, built / "pictures")
        else:
            samples = vqa_samples(self.data, self.protocol)
        odd = [sample.id for sample in samples if len(sample.target) != scorer.M4C_ANSWERS]
        if odd and scorer.mode_named(self.protocol.scorer) == "m4c":
            raise ValueError(
                f"{self.protocol.id} needs ten answers to each question, and {len(odd)} of {len(samples)} "
                f"have fewer or more ({examples(odd)}); choose scorer=always or scorer=official"
            )
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
        modes: dict[str, list[Metric]] = {}
        types = np.array([sample.meta.get("answer_type") or "" for sample in samples])
        answered = np.array([text is not None for text in texts], dtype=float)
        others = scorer.MODES if all(len(sample.target) == scorer.M4C_ANSWERS for sample in samples) else ()
        for mode in dict.fromkeys([self.protocol.scorer, *others]):
            own = mode == self.protocol.scorer
            accuracy = np.array(
                [
                    0.0
                    if text is None or score is None
                    else score.value
                    if own
                    else scorer.accuracy(text, sample.target, mode)
                    for sample, text, score in zip(samples, texts, scores, strict=True)
                ]
            )
            groups = {"": np.ones_like(answered)} | {
                kind: (types == kind).astype(float) for kind in sorted(set(types.tolist()) - {""})
            }
            modes[mode] = [
                Metric("accuracy", (accuracy * member)[None], (answered * member)[None], group, "higher")
                for group, member in groups.items()
            ]
        return TaskMetrics(
            metrics=[*modes[self.protocol.scorer], *length_metrics(texts, truncated)], parsers=modes
        )

    def target(self, sample: Sample) -> str:
        counts = {answer: sample.target.count(answer) for answer in sample.target}
        return ", ".join(
            f"{answer} ({count})" for answer, count in sorted(counts.items(), key=lambda e: -e[1])
        )
