"""Answers and labels of POPE as they are found in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.files import answers
from vlmfix.evaluation.files.answers import ID_KEYS, IMAGE_KEYS, Answer, Answers, Keys
from vlmfix.evaluation.files.readers import Record, field_of, id_of, read_records, shown
from vlmfix.evaluation.tasks.yes_no import yes_or_no
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .questions import asked_object

LABEL_KEYS = ("label", "answer", "gt", "gt_answer", "ground_truth")


@dataclass(frozen=True)
class Label:
    """One question and what is right; `rewritten` if the file spells the label otherwise, and `conversation`
    if it is asked in one."""

    label: Verdict
    rewritten: bool
    id: int | str | None
    question: str | None
    image: str | None
    object: str | None
    where: str
    conversation: int | str | None = None


def read_answers(path: str | Path, keys: Keys | None = None) -> Answers:
    """The answers of a file, their labels as yes or no; see `vlmfix.evaluation.files.answers.read_answers`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not what it should be, several keys could hold the answer, or a label is neither
            yes nor no.
    """
    keys = keys or Keys()
    found = answers.read_answers(path, dataclasses.replace(keys, label=None))
    if keys.label is not None:  # that of the labels, which answers may have, too
        found = found.with_(
            dataclasses.replace(each, label=each.record.get(keys.label, each.label)) for each in found
        )
    return found.with_(
        dataclasses.replace(
            answer, label=None if answer.label is None else yes_or_no(answer.label, answer.where)
        )
        for answer in found
    )


def read_labels(path: str | Path, keys: Keys | None = None) -> list[Label]:
    """The labels of a POPE question file, of a list of conversations, or of a log with labels inside; yes and
    no may be in any case, or be 1 and 0.

    Args:
        path: file.
        keys: of label and id, where they are not the usual ones.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not what it should be, or a label is neither yes nor no.
    """
    keys = keys or Keys()
    return [label for record in read_records(path) for label in _labels(record, keys)]


def labels_inside(given: Sequence[Answer]) -> list[Label]:
    """The labels that stand beside answers.

    Raises:
        ValueError: an answer has none.
    """
    without = next((answer for answer in given if answer.label is None), None)
    if without is not None:
        raise ValueError(f"{without.where}: no label beside the answer; give the files of --labels")
    return [
        Label(
            label=answer.label,
            rewritten=False,
            id=answer.id,
            question=answer.question,
            image=answer.image,
            object=asked_object(answer.question or ""),
            where=answer.where,
        )
        for answer in given
    ]


def _labels(record: Record, keys: Keys) -> list[Label]:
    """The label of a record, or those of a conversation, whose ids count the questions of all of them."""
    questions, labels = record.get("text"), record.get("label")
    if not (isinstance(questions, list) and isinstance(labels, list)):
        return [_label(record, keys)]
    if len(questions) != len(labels) or not questions:
        raise ValueError(
            f"{record.where}: {len(questions)} questions with {len(labels)} labels; give one each"
        )
    chat = id_of(record, ("chat_id",), "chat id")
    if not isinstance(chat, int):
        raise ValueError(f"{record.where}: the chat id is {shown(chat)}; it must be a whole number")
    found = []
    for turn, (question, label) in enumerate(zip(questions, labels, strict=True), 1):
        own = {**record, "text": question, "label": label, "question_id": chat * len(questions) + turn}
        each = _label(Record(own, f"{record.where}, round {turn}"), Keys())
        found.append(dataclasses.replace(each, conversation=chat))
    return found


def _label(record: Record, keys: Keys) -> Label:
    raw = field_of(record, LABEL_KEYS if keys.label is None else [keys.label], "label")
    ids = [name for name in (keys.id or "", *ID_KEYS) if name in record]
    label = yes_or_no(raw, record.where)
    question = _optional(record, ("query", "text", "question", "prompt"))
    target = _optional(record, ("target_object", "object"))
    return Label(
        label=label,
        rewritten=raw != label,
        id=id_of(record, ids, "question id") if ids else None,
        question=question,
        image=_optional(record, IMAGE_KEYS),
        object=target.lower() if target else asked_object(question or ""),
        where=record.where,
    )


def _optional(record: Record, names: Sequence[str]) -> str | None:
    """The first text under these keys; what is no text only helps to compare, so it does not matter."""
    return next((value for name in names if isinstance(value := record.get(name), str)), None)
