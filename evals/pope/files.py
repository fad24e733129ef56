"""Answers and labels of POPE as they are found in files, and which answer belongs to which label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from vlmfix.evaluation.files.readers import (
    Record,
    examples,
    id_of,
    read_records,
    shown,
    text_of,
)
from vlmfix.evaluation.tasks.yes_no import Verdict

from .parsers import asked_object

Join = Literal["position", "id"]

ANSWER_KEYS = ("answer", "prediction", "response", "output", "caption", "text")
LABEL_KEYS = ("label", "answer", "gt", "gt_answer", "ground_truth")
QUESTION_KEYS = ("question", "query", "prompt", "text")
IMAGE_KEYS = ("image", "image_name", "image_source")
ID_KEYS = ("question_id", "id", "qid")


@dataclass(frozen=True)
class Answer:
    """One answer: its text (None for null), and id, question and image where the file has them."""

    text: str | None
    id: int | str | None
    question: str | None
    image: str | None
    where: str


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


@dataclass(frozen=True)
class Pairing:
    """Which answers belong to which labels, and what does not.

    Args:
        join: what they were paired by.
        pairs: in the order of the labels.
        surplus: by position, the answers beyond the last label.
        missing: labels without an answer.
        unknown: answers whose id is of no label.
        duplicates: answers whose id had occurred.
        duplicate_labels: labels whose id had occurred.
        disagreeing: pairs whose ids, questions or images differ.
    """

    join: Join
    pairs: list[tuple[Answer, Label]]
    surplus: list[Answer]
    missing: int
    unknown: int
    duplicates: int
    duplicate_labels: int
    disagreeing: int


_Row = TypeVar("_Row", Answer, Label)


def read_answers(path: str | Path, key: str | None = None) -> list[Answer]:
    """The answers of a file: a JSON array, JSON Lines, or an object with a list of them.

    Args:
        path: file.
        key: the key of the answer's text; without it the one of `ANSWER_KEYS` that is there, where
            "text" counts last, because it often holds the question.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not what it should be, or several keys could hold the answer.
    """
    return [_answer(record, key) for record in read_records(path)]


def read_labels(path: str | Path) -> list[Label]:
    """The labels of a POPE question file; yes and no may be in any case.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not what it should be, or a label is neither yes nor no.
    """
    return [_label(record) for record in read_records(path)]


def pair(
    answers: Sequence[Answer],
    labels: Sequence[Label],
    join: Join,
    *,
    partial: bool = False,
    truncate: bool = False,
) -> Pairing:
    """Find the label of each answer.

    Args:
        answers: in the order of their file.
        labels: in the order of theirs.
        join: by position or by id.
        partial: let missing, unknown and duplicate ids be, or at a position what one list lacks; of
            duplicates the first counts.
        truncate: by position, let one list be longer, as the official script does.

    Raises:
        ValueError: for lists that do not fit each other, if not let be.
    """
    if join == "position":
        if len(answers) != len(labels) and not (partial or truncate):
            raise ValueError(
                f"{len(answers)} answers for {len(labels)} labels, paired by position; complete the file,"
                " pair by id, or pass --allow-partial"
            )
        pairs = list(zip(answers, labels, strict=False))
        surplus = list(answers[len(labels) :])
        missing = len(labels) - len(pairs)
        return Pairing(join, pairs, surplus, missing, 0, 0, 0, _disagreeing(pairs))
    first_answers, repeated = _by_id(answers)
    first_labels, repeated_labels = _by_id(labels)
    unknown = [key for key in first_answers if key not in first_labels]
    missing_ids = [key for key in first_labels if key not in first_answers]
    problems = {
        "labels without an answer": missing_ids,
        "answers with an unknown id": unknown,
        "answers with a repeated id": repeated,
        "labels with a repeated id": repeated_labels,
    }
    if any(problems.values()) and not partial:
        found = "; ".join(f"{len(ids)} {what} ({examples(ids)})" for what, ids in problems.items() if ids)
        raise ValueError(
            f"{found}; ids are joined within one split: give each split its own files,"
            " use --pairing position, or pass --allow-partial"
        )
    pairs = [(first_answers[key], label) for key, label in first_labels.items() if key in first_answers]
    counts = (len(missing_ids), len(unknown), len(repeated), len(repeated_labels))
    return Pairing(join, pairs, [], *counts, _disagreeing(pairs))


def ids_on_both(answers: Sequence[Answer], labels: Sequence[Label]) -> bool:
    """Whether answers and labels carry ids to be joined by.

    Raises:
        ValueError: if some answers carry one and others do not.
    """
    carrying = [answer for answer in answers if answer.id is not None]
    if carrying and len(carrying) < len(answers):
        lacking = next(answer for answer in answers if answer.id is None)
        raise ValueError(
            f"{lacking.where}: no question id, though {len(carrying)} other answers have one; "
            "add it or use --pairing position"
        )
    return bool(carrying) and all(label.id is not None for label in labels)


def _answer(record: Record, key: str | None) -> Answer:
    found = [name for name in ANSWER_KEYS if name in record and name != "text"]
    if key is None and len(found) > 1:
        raise ValueError(
            f"{record.where}: {' and '.join(map(repr, found))} could both be the answer;"
            " choose with --answer-key"
        )
    names = (key,) if key is not None else (*found, *ANSWER_KEYS)
    used = next((name for name in names if name in record), None)
    asked = _optional(record, [name for name in QUESTION_KEYS if name != used])
    text = text_of(record, names, "answer")
    return Answer(text, _optional_id(record), asked, _optional(record, IMAGE_KEYS), record.where)


def _label(record: Record) -> Label:
    raw = text_of(record, LABEL_KEYS, "label")
    cleaned = (raw or "").strip().lower()
    if cleaned not in ("yes", "no"):
        raise ValueError(f"{record.where}: the label is {shown(raw)}; it must be yes or no")
    question = _optional(record, ("text", "question", "query", "prompt"))
    target = _optional(record, ("target_object", "object"))
    return Label(
        label="yes" if cleaned == "yes" else "no",
        rewritten=raw != cleaned,
        id=_optional_id(record),
        question=question,
        image=_optional(record, IMAGE_KEYS),
        object=target.lower() if target else asked_object(question or ""),
        where=record.where,
    )


def _optional(record: Record, names: Sequence[str]) -> str | None:
    """The first text under these keys; what is no text only helps to compare, so it does not matter."""
    return next((value for name in names if isinstance(value := record.get(name), str)), None)


def _optional_id(record: Record) -> int | str | None:
    return id_of(record, ID_KEYS, "question id") if any(name in record for name in ID_KEYS) else None


def _by_id(rows: Sequence[_Row]) -> tuple[dict[int | str, _Row], list[int | str]]:
    """The first row of each id, and the ids of the others."""
    first: dict[int | str, _Row] = {}
    repeated = []
    for row in rows:
        if row.id is None:
            raise ValueError(f"{row.where}: no question id to join by; add it or use --pairing position")
        if row.id in first:
            repeated.append(row.id)
        else:
            first[row.id] = row
    return first, repeated


def _disagreeing(pairs: Sequence[tuple[Answer, Label]]) -> int:
    """Pairs of which one side tells of another question than the other."""
    return sum(_differ(answer, label) for answer, label in pairs)


def _differ(answer: Answer, label: Label) -> bool:
    if answer.id is not None and label.id is not None and answer.id != label.id:
        return True
    if answer.question and label.question and not _asks(answer.question, label.question):
        return True
    return bool(answer.image and label.image and _stem(answer.image) != _stem(label.image))


def _asks(prompt: str, question: str) -> bool:
    """Whether the question is in the prompt, whatever stands around it."""
    words = (re.sub(r"\W+", " ", text.lower()).strip() for text in (question, prompt))
    return next(words) in next(words)


def _stem(path: str) -> str:
    """`"val2014/COCO_val2014_000000000042.jpg"` and `"000000000042.png"` have the same."""
    name = re.split(r"[/\\]", path)[-1]
    stem = name.rpartition(".")[0] or name
    return stem[-12:] if stem[-12:].isdigit() else stem
