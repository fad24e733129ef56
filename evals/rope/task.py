"""ROPE: which classes five marked objects have (arXiv 2407.06192)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score, Task, TaskMetrics
from vlmfix.evaluation.tasks.lengths import length_metrics
from vlmfix.evaluation.tasks.protocols import one_of

from .dataset import DEFAULT, PROMPT, SETTINGS, SINGLE, STUDENT, TEACHER, rope_samples
from .entries import PARTS
from .metrics import official_metrics, rope_metrics
from .slots import Slots, first_field, normalized, read_slots, whole_answer

_READERS: dict[str, Callable[[str], Slots]] = {
    DEFAULT: read_slots,
    SINGLE: lambda text: Slots((whole_answer(text),)),
    TEACHER: lambda text: Slots((first_field(text),)),
    STUDENT: lambda text: Slots((first_field(text),)),
}
"""How the answers of each setting are read."""

NORMALIZED = "normalized"
"""Our own way to compare classes, beside the official one."""

OFFICIAL = (DEFAULT, SINGLE)
"""Settings with official figures; the official reader of the others goes beyond what an answer is."""


class Rope(Task):
    """The classes of five objects, asked at once or one by one; the cluster of a sample is its picture."""

    name: ClassVar = "rope"
    settings: ClassVar = {
        "prompt": PROMPT,
        "setting": one_of(SETTINGS, required=True),
        "part": one_of(PARTS, required=True),
    }
    running: ClassVar = "slots right"

    def samples(self, built: Path) -> list[Sample]:
        return rope_samples(self.folder, self.protocol, built / "pictures")

    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        slots = _READERS[sample.meta["setting"]](text)
        right = sum(
            given == normalized(name) for given, name in zip(slots.classes, sample.target, strict=True)
        )
        unmarked = ", read in order" if slots.unmarked else ""
        parsed = {"classes": list(slots.classes), "unmarked": slots.unmarked}
        return Score(parsed, f"{right} of {len(slots.classes)} right{unmarked}", right / len(slots.classes))

    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        said = classes_of(scores)
        ways = {NORMALIZED: rope_metrics(samples, said)}
        if self.protocol.own["setting"] in OFFICIAL:
            ways["official"] = official_metrics(samples, texts)
        return TaskMetrics(
            metrics=[*ways[NORMALIZED], *length_metrics(texts, truncated)],
            parsers=ways,
            unparsed=sum(classes is not None and not any(classes) for classes in said),
        )

    def target(self, sample: Sample) -> str:
        return ", ".join(
            f"obj{slot + 1}: {name}" for slot, name in zip(sample.meta["slots"], sample.target, strict=True)
        )


def classes_of(scores: Sequence[Score | None]) -> list[list[Any] | None]:
    """What each answer gives to the slots of its sample; None: the sample failed."""
    return [None if score is None else score.parsed["classes"] for score in scores]
