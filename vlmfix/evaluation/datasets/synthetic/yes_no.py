"""Questions about a scene in pairs: one answered yes, and one of the same kind answered no."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from vlmfix.evaluation.datasets.synthetic.language import NUMBER_WORDS, with_article
from vlmfix.evaluation.datasets.synthetic.scenes import CATEGORIES, COLORS, PARTNERS, SceneObject

Kind = Literal["existence", "count", "position", "color"]
_Answer = Literal["yes", "no"]
_YES_THEN_NO: tuple[_Answer, _Answer] = ("yes", "no")


@dataclass(frozen=True)
class PairedQuestion:
    """One of the two questions of a pair; `object` is the category that it is about."""

    kind: Kind
    text: str
    answer: _Answer
    object: str


def paired_questions(objects: Sequence[SceneObject], turn: int) -> list[PairedQuestion]:
    """At most one pair of each kind about a scene, the yes before the no.

    Only objects that are alone in their category are asked about for colour and position. Absent objects are
    the usual partners of present ones, where there are such.

    Args:
        objects: of the scene, at least one.
        turn: number of the scene, which picks categories, so that scenes with the same objects differ.
    """
    counts: dict[str, int] = {}
    for item in objects:
        counts[item.category] = counts.get(item.category, 0) + 1
    single = [item for item in objects if counts[item.category] == 1]
    return [
        *_existence(list(counts), turn),
        *_count(counts, turn),
        *_position(single, turn),
        *_color(single, turn),
    ]


def _existence(present: Sequence[str], turn: int) -> Iterator[PairedQuestion]:
    there = present[turn % len(present)]
    absent = [PARTNERS[name] for name in present if name in PARTNERS and PARTNERS[name] not in present]
    absent = absent or [name for name in CATEGORIES if name not in present]
    missing = absent[turn % len(absent)]
    yield PairedQuestion("existence", f"Is there {with_article(there)} in the image?", "yes", there)
    yield PairedQuestion("existence", f"Is there {with_article(missing)} in the image?", "no", missing)


def _count(counts: dict[str, int], turn: int) -> Iterator[PairedQuestion]:
    several = [name for name in counts if counts[name] > 1] or list(counts)
    name = several[turn % len(several)]
    right = counts[name]
    yield PairedQuestion("count", _how_many(name, right), "yes", name)
    wrong = 2 if right == 1 else right - 1
    yield PairedQuestion("count", _how_many(name, wrong), "no", name)


def _how_many(name: str, count: int) -> str:
    if count == 1:
        return f"Is there only one {name} in the image?"
    return f"Are there {NUMBER_WORDS[count]} {CATEGORIES[name].plural} in the image?"


def _position(single: Sequence[SceneObject], turn: int) -> Iterator[PairedQuestion]:
    apart = [pair for pair in combinations(single, 2) if _is_left(*pair) or _is_left(*pair[::-1])]
    if not apart:
        return
    one, other = apart[turn % len(apart)]
    sides = ("left", "right") if _is_left(one, other) else ("right", "left")
    for side, answer in zip(sides, _YES_THEN_NO, strict=True):
        text = f"Is the {one.category} to the {side} of the {other.category} in the image?"
        yield PairedQuestion("position", text, answer, one.category)


def _is_left(one: SceneObject, other: SceneObject) -> bool:
    """Whether one ends before the other begins."""
    return one.box[0] + one.box[2] <= other.box[0]


def _color(single: Sequence[SceneObject], turn: int) -> Iterator[PairedQuestion]:
    if not single:
        return
    item = single[turn % len(single)]
    others = [color for color in COLORS if color != item.color]
    for color, answer in zip((item.color, others[turn % len(others)]), _YES_THEN_NO, strict=True):
        text = f"Is there {with_article(f'{color} {item.category}')} in the image?"
        yield PairedQuestion("color", text, answer, item.category)
