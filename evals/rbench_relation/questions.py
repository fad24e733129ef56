"""R-Bench's question files and id lists (arXiv 2406.16449)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.readers import (
    Record,
    field_of,
    id_of,
    read_json,
    read_records,
    shown,
    text_of,
)
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

LEVELS = ("image", "instance", "web")
FILES = {
    "image": "image-level_filterd.json",  # spelt so
    "instance": "instance-level_filterd.json",
    "web": "web_v1.json",
}
SUBSETS = 5
VARIANTS = ("all", "official")
"""Lists of question ids, and what figures are of: every question once, or the mean over these lists."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of width and height."""


@dataclass(frozen=True)
class Thing:
    """An object that a question is about, and where it is."""

    name: str
    box: Box


@dataclass(frozen=True)
class RelationQuestion:
    """One yes/no question about a relation.

    Args:
        id: unique within its file.
        image: file name of the picture.
        text: the question, of which no object is marked.
        label: what is right.
        things: subject and object at instance level; None elsewhere.
        kind: "counterfactual" or "illusion" for pictures from the web; "" elsewhere.
    """

    id: int | str
    image: str
    text: str
    label: Verdict
    things: tuple[Thing, Thing] | None = None
    kind: str = ""


def read_questions(folder: DataFolder, level: str) -> list[RelationQuestion]:
    """The questions of a level, in the order of their file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a record lacks a field or has a wrong one, boxes are in pixels, or an id comes twice.
    """
    path = _find(folder, FILES[level])
    questions: dict[int | str, RelationQuestion] = {}
    for record in read_records(path):
        question = _question(record, level)
        if question.id in questions:
            raise ValueError(f"{record.where}: question_id {question.id} comes twice; ids must be unique")
        questions[question.id] = question
    folder.record(f"rbench {level}", path, len(questions))
    return list(questions.values())


def read_subsets(folder: DataFolder, level: str) -> list[list[int | str]]:
    """The five lists of question ids over which the official figures of a level are averaged.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is no list of ids.
    """
    subsets = []
    for number in range(1, SUBSETS + 1):
        path = _find(folder, f"*{level}-level*_ids_{number}.json")
        content = read_json(path)
        if not isinstance(content, list) or not content:
            raise ValueError(f"{path}: {shown(content)} is no list of ids; it must have at least one")
        where = f"{path}, one of its ids"
        subsets.append([id_of(Record({"id": each}, where), ("id",)) for each in content])
        folder.record(f"rbench {level} ids {number}", path, len(content))
    return subsets


def _find(folder: DataFolder, name: str) -> Path:
    return folder.find_file("rbench_relation", name, f"**/{name}")


def _question(record: Record, level: str) -> RelationQuestion:
    things = None
    if level == "instance":
        subject, object = (_thing(record, *keys) for keys in (("subject", "sub_box"), ("object", "obj_box")))
        things = subject, object
    return RelationQuestion(
        id=id_of(record, ("question_id",), "question id"),
        image=_filled(record, "image"),
        text=_filled(record, "text"),
        label=yes_or_no(field_of(record, ("label",), "label"), record.where),
        things=things,
        kind=_filled(record, "type") if level == "web" else "",
    )


def _thing(record: Record, name: str, box: str) -> Thing:
    value = field_of(record, (box,), "box")
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise ValueError(f"{record.where}: {box} is {shown(value)}; it must be four numbers")
    left, top, right, bottom = map(float, value)
    if max(value) > 1:
        raise ValueError(
            f"{record.where}: {box} is {shown(value)}, in pixels; it must be in fractions of width and "
            "height, as R-Bench has it"
        )
    if not (0 <= left <= right and 0 <= top <= bottom):
        raise ValueError(f"{record.where}: {box} is {shown(value)}; it must be left, top, right, bottom")
    return Thing(_filled(record, name), (left, top, right, bottom))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _filled(record: Record, name: str) -> str:
    text = text_of(record, (name,), name)
    if not text or not text.strip():
        raise ValueError(f"{record.where}: {name} is {shown(text)}; it must be a text")
    return text
