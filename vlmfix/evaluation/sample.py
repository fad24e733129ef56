"""One question about one image, and the choice of some of many."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def limited(
    samples: Sequence[Sample],
    limit: int | float,
    unit: Callable[[Sample], str] = lambda sample: sample.id,
) -> list[Sample]:
    """A stable subset: the first samples in the order of the SHA-256 of their ids, in their own order again.

    Args:
        samples: with different ids.
        limit: how many, or as a float in (0, 1] which share; more than there are means all.
        unit: what samples that stay together share; the SHA-256 is then that of their unit, and there are
            fewer than `limit` where the next unit is too large, but at least one unit.

    Raises:
        ValueError: `limit` is neither.
    """
    share = isinstance(limit, float)
    if isinstance(limit, bool) or not (0 < limit <= 1 if share else limit >= 1):
        raise ValueError(
            f"limit must be a count of at least 1 or a share in (0, 1] such as 0.1, got {limit!r}"
        )
    count = max(1, round(limit * len(samples))) if share else int(limit)
    sizes = Counter(map(unit, samples))
    chosen: set[str] = set()
    for each in sorted(sizes, key=lambda each: hashlib.sha256(each.encode()).digest()):
        count -= sizes[each]
        if chosen and count < 0:
            break
        chosen.add(each)
    return [sample for sample in samples if unit(sample) in chosen]
