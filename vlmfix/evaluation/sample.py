"""One question about one image, and the choice of some of many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.hashing import digest


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Args:
        id: unique over all splits, such as "pope/coco/random/17", "chair/000000000042", "vqa/262148000".
        cluster: the image, for statistics and to keep the questions of an image together.
        image: its file, which need not exist until it is asked about; None for a question without image.
        prompt: what the user asks, suffix included, without chat template.
        gold: what is right, as a JSON value: "yes" or "no", a list of classes, a list of ten answers.
        meta: JSON values that scorers and reports need, such as split, object, question (without suffix).
    """

    id: str
    cluster: str
    image: Path | None
    prompt: str
    gold: Any
    meta: Mapping[str, Any]


def content_hash(item: Item) -> str:
    """SHA-256 of what an item asks and holds right: id, prompt, gold and meta, but not where its image lies.

    Raises:
        ValueError: gold or meta hold NaN or an infinite number.
        TypeError: gold or meta hold what JSON cannot.
    """
    return digest({"id": item.id, "prompt": item.prompt, "gold": item.gold, "meta": dict(item.meta)})


def in_order(items: Iterable[Item]) -> list[Item]:
    """The items in the order of their ids."""
    return sorted(items, key=lambda item: item.id)


def limited(items: Sequence[Item], limit: int | float) -> list[Item]:
    """A stable subset: the first items in the order of the SHA-256 of their ids, in their own order again.

    Args:
        items: with different ids.
        limit: how many, or as a float in (0, 1] which share; more than there are means all.

    Raises:
        ValueError: `limit` is neither.
    """
    share = isinstance(limit, float)
    if isinstance(limit, bool) or not (0 < limit <= 1 if share else limit >= 1):
        raise ValueError(
            f"limit must be a count of at least 1 or a share in (0, 1] such as 0.1, got {limit!r}"
        )
    count = max(1, round(limit * len(items))) if share else int(limit)
    first = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:count]
    chosen = {item.id for item in first}
    return [item for item in items if item.id in chosen]
