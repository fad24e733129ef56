"""One question about one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.hashing import digest

UNREACHED = "UnfinishedReasoning"
"""Type of the error in records without an answer, whose reasoning did not end. They are counted among the
failed samples, but stop no run."""


@dataclass(frozen=True)
class Sample:
    """One question about one image.

    Args:
        id: unique over all splits, such as "pope/coco/random/17", "chair/000000000042", "vqa/262148000".
        cluster: the image, for statistics and to keep the questions of an image together.
        image: its file, which need not exist until it is asked about; None for a question without image.
        prompt: what the user asks, suffix included, without chat template.
        target: what is right, as a JSON value: "yes" or "no", a list of classes, a list of ten answers.
        meta: JSON values that scorers and reports need, such as split, object, question (without suffix).
    """

    id: str
    cluster: str
    image: Path | None
    prompt: str
    target: Any
    meta: Mapping[str, Any]


def content_hash(sample: Sample) -> str:
    """SHA-256 of what a sample asks and its target: id, prompt, target and meta, not where its image lies.

    Raises:
        ValueError: target or meta hold NaN or an infinite number.
        TypeError: target or meta hold what JSON cannot.
    """
    return digest(
        {"id": sample.id, "prompt": sample.prompt, "target": sample.target, "meta": dict(sample.meta)}
    )


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    """The samples in the order of their ids."""
    return sorted(samples, key=lambda sample: sample.id)
