"""Slots of ROPE's answers: which class an answer gives to each object (arXiv 2407.06192)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

SLOTS = 5

_MARK = re.compile(r"obj[. ]?(\d)\s*:", re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Slots:
    """What an answer says of each object.

    Args:
        classes: one for each object, in lower case and without punctuation; None where the answer has none.
        unmarked: whether they were taken in order, as the answer has no "obj1:".
    """

    classes: tuple[str | None, ...]
    unmarked: bool = False


def read_slots(text: str) -> Slots:
    """The classes in an answer about five objects, such as "obj1: cup, obj2: tie".

    A class ends at a comma or at the next mark; the first mention of an object counts. Without any mark, five
    fields between commas are taken in order.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        fields = text.split(",")
        if len(fields) != SLOTS:
            return Slots((None,) * SLOTS)
        return Slots(tuple(normalized(field) or None for field in fields), unmarked=True)
    found: dict[int, str] = {}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        found.setdefault(int(mark[1]), normalized(text[mark.end() : end].partition(",")[0]))
    return Slots(tuple(found.get(number) or None for number in range(1, SLOTS + 1)))


def first_field(text: str) -> str | None:
    """The class in an answer that goes on after "obj2:": up to the first comma or line break."""
    return normalized(re.split(r"[,\n]", text.strip(), maxsplit=1)[0]) or None


def whole_answer(text: str) -> str | None:
    """The class in an answer that has to be one."""
    return normalized(text) or None


def normalized(text: str) -> str:
    """In lower case, without punctuation, with single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


@dataclass(frozen=True)
class OfficialSlots:
    """What sled-group/moh makes of an answer about five objects.

    Args:
        classes: one for each object, in lower case, else as it is; None where the answer has none.
        counted: by how many slots the denominator grows.
    """

    classes: tuple[str | None, ...]
    counted: int


def official_slots(text: str) -> OfficialSlots:
    """The answer split at ", " and each field at ": ", in order.

    An answer that cannot be split so stays a text, of which each letter is taken for a class, and counts
    twice in the denominator.
    """
    fields = [field.split(": ") for field in text.split(", ")]
    splits = all(len(field) > 1 for field in fields)
    said: Sequence[str] = [field[1] for field in fields] if splits else text
    classes = [said[index].lower() if index < len(said) else None for index in range(SLOTS)]
    return OfficialSlots(tuple(classes), SLOTS if splits else 2 * SLOTS)
