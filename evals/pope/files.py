"""Answers and labels of POPE as they are found in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.files import answers
from vlmfix.evaluation.files.answers import ID_KEYS, IMAGE_KEYS, Answer, Keys
from vlmfix.evaluation.files.readers import (
    Record,
    field_of,
    id_of,
    read_records,
    shown,
    text_of,
)
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .questions import asked_object

LABEL_KEYS = ("label", "answer", "gt", "gt_answer", "ground_truth")

# In LLaVA's one answer file, ids of each split begin here.
_LLAVA_RANGE = 10_000_000
LLAVA_SPLITS = ("adversarial", "random", "popular")


@dataclass(frozen=True)
class Label:
    """One question and what is right; `rewritten` if the file spells the label otherwise."""

    label: Verdict
    rewritten: bool
    id: int | str | None
    question: str | None
    image: str | None
    object: str | None
    where: str


def read_answers(path: str | Path, keys: Keys | None = None) -> list[Answer]:
    """The answers of a file, their labels as yes or no; see `vlmfix.evaluation.files.answers.read_answers`.

    lmms-eval's samples have the question's id beside each figure.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not what it should be, several keys could hold the answer, or a label is neither
            yes nor no.
    """
    return [
        dataclasses.replace(
            answer,
            id=_inner_id(answer.record) if answer.id is None else answer.id,
            label=None if answer.label is None else yes_or_no(answer.label, answer.where),
        )
        for answer in answers.read_answers(path, keys)
    ]


def read_labels(path: str | Path) -> list[Label]:
    """The labels of a POPE question file, or of a log with labels inside; yes and no may be in any case, or
    be 1 and 0.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not what it should be, or a label is neither yes nor no.
    """
    return [_label(record) for record in read_records(path)]


def llava_splits(given: Sequence[Answer], questions: str | Path | None = None) -> dict[str, list[Answer]]:
    """LLaVA's answers by split, with the ids of POPE; empty where ids are not of several of its ranges.

    Its ids begin at 1 (adversarial), 10000001 (random) and 20000001 (popular).

    Args:
        given: of its one file.
        questions: its question file (`llava_pope_test.jsonl`), which must name the same split for each id;
            images are from it.

    Raises:
        OSError: if the question file cannot be read.
        ValueError: if it lacks an id, or names another split.
    """
    ids = [answer.id for answer in given if isinstance(answer.id, int)]
    places = {id // _LLAVA_RANGE for id in ids}
    if len(ids) < len(given) or len(places) < 2 or not places <= set(range(len(LLAVA_SPLITS))):
        return {}
    known = {}
    if questions is not None:
        for record in read_records(questions):
            known[id_of(record, ID_KEYS, "question id")] = record
    found: dict[str, list[Answer]] = {}
    for answer, id in zip(given, ids, strict=True):
        place, own = divmod(id, _LLAVA_RANGE)
        split, image = LLAVA_SPLITS[place], answer.image
        if questions is not None:
            if id not in known:
                raise ValueError(f"{answer.where}: question id {id} is not in {questions}; give its file")
            named = text_of(known[id], ("category",), "category")
            if named != split:
                raise ValueError(
                    f"{known[id].where}: the category of question id {id} is {shown(named)}, and by its "
                    f"number it is {split}; these are not LLaVA's questions"
                )
            image = text_of(known[id], IMAGE_KEYS, "image")
        found.setdefault(split, []).append(dataclasses.replace(answer, id=own, image=image))
    return {split: found[split] for split in LLAVA_SPLITS if split in found}


def _label(record: Record) -> Label:
    raw = field_of(record, LABEL_KEYS, "label")
    label = yes_or_no(raw, record.where)
    question = _optional(record, ("query", "text", "question", "prompt"))
    target = _optional(record, ("target_object", "object"))
    return Label(
        label=label,
        rewritten=raw != label,
        id=id_of(record, ID_KEYS, "question id") if any(name in record for name in ID_KEYS) else None,
        question=question,
        image=_optional(record, IMAGE_KEYS),
        object=target.lower() if target else asked_object(question or ""),
        where=record.where,
    )


def _optional(record: Record, names: Sequence[str]) -> str | None:
    """The first text under these keys; what is no text only helps to compare, so it does not matter."""
    return next((value for name in names if isinstance(value := record.get(name), str)), None)


def _inner_id(record: Record) -> int | str | None:
    inner = next(
        (value for name, value in record.items() if name.startswith("pope_") and isinstance(value, dict)), {}
    )
    return id_of(Record(inner, record.where), ID_KEYS, "question id") if "question_id" in inner else None
