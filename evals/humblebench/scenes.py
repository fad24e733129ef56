"""HumbleBench on synthetic scenes: which object is in the picture; in each seventh question none of four."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.language import with_article
from vlmfix.evaluation.datasets.synthetic.scenes import CATEGORIES

from .rows import LETTERS, NONE_OF_THESE, Row

IMAGES, PER_IMAGE = 200, 2
"""Scenes at most that questions are built about, and objects at most of each."""

# Of the published questions, E is right in 14.57 %.
_EVERY = 7


def build_rows(folder: DataFolder) -> list[Row]:
    """Questions about the first scenes of a folder, the same for the same scenes."""
    instances = folder.read_instances("humblebench")
    rows: list[Row] = []
    for image_id in list(instances.file_names)[:IMAGES]:
        image, present = instances.file_names[image_id], instances.objects[image_id]
        rng = random.Random(image_id)
        absent = [name for name in CATEGORIES if name not in present]
        for name in present[:PER_IMAGE]:
            number = len(rows) + 1
            is_none = number % _EVERY == 0
            offered = rng.sample(absent, 4) if is_none else [name, *rng.sample(absent, 3)]
            rng.shuffle(offered)
            label = NONE_OF_THESE if is_none else LETTERS[offered.index(name)]
            rows.append(
                Row(number, image, _question(offered), label, "Object", f"{image}, question {number}")
            )
    return rows


def _question(offered: Sequence[str]) -> str:
    lines = [f"{letter}. {with_article(name)}" for letter, name in zip(LETTERS, offered, strict=False)]
    return "\n".join(["Which object is in the image?", *lines, f"{NONE_OF_THESE}. None of the above"])
