"""Open questions with the answers of ten people (VQA v2, arXiv 1505.00468)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.files.readers import examples
from vlmfix.evaluation.sample import Item
from vlmfix.evaluation.tasks.base import Judgement, Scores, Task
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.protocols import JOIN, SWITCH, TEXT, Setting, one_of

from . import scorer
from .dataset import vqa_items, vqa_rows


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

    def items(self, built: Path) -> list[Item]:
        if isinstance(self.data, HubData):
            items = vqa_rows(self.data, self.protocol, built / "pictures")
        else:
            items = vqa_items(self.data, self.protocol)
        odd = [item.id for item in items if len(item.gold) != scorer.M4C_ANSWERS]
        if odd and scorer.mode_named(self.protocol.scorer) == "m4c":
            raise ValueError(
                f"{self.protocol.id} needs ten answers to each question, and {len(odd)} of {len(items)} have "
                f"fewer or more ({examples(odd)}); choose scorer=always or scorer=official"
            )
        return items

    def judge(self, item: Item, text: str, *, cut: bool) -> Judgement:
        score = scorer.accuracy(text, item.gold, self.protocol.scorer)
        return Judgement(text.strip(), f"{score:.0%}", score)

    def scores(self, items: Sequence[Item], texts: Sequence[str | None], cut: Sequence[bool]) -> Scores:
        modes: dict[str, list[Metric]] = {}
        types = np.array([item.meta.get("answer_type") or "" for item in items])
        answered = np.array([text is not None for text in texts], dtype=float)
        others = scorer.MODES if all(len(item.gold) == scorer.M4C_ANSWERS for item in items) else ()
        for mode in dict.fromkeys([self.protocol.scorer, *others]):
            accuracy = np.array(
                [
                    0.0 if text is None else scorer.accuracy(text, item.gold, mode)
                    for item, text in zip(items, texts, strict=True)
                ]
            )
            groups = {"": np.ones_like(answered)} | {
                kind: (types == kind).astype(float) for kind in sorted(set(types.tolist()) - {""})
            }
            modes[mode] = [
                Metric("accuracy", (accuracy * member)[None], (answered * member)[None], group, "higher")
                for group, member in groups.items()
            ]
        return Scores(metrics=[*modes[self.protocol.scorer], *length_metrics(texts, cut)], parsers=modes)

    def gold(self, item: Item) -> str:
        counts = {answer: item.gold.count(answer) for answer in item.gold}
        return ", ".join(
            f"{answer} ({count})" for answer, count in sorted(counts.items(), key=lambda e: -e[1])
        )
