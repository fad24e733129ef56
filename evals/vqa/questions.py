"""Open questions with the answers of several people, in the form of VQA v2 (arXiv 1505.00468)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.readers import (
    Record,
    field_of,
    id_of,
    image_number,
    read_records,
    shown,
    text_of,
)


@dataclass(frozen=True)
class VqaQuestion:
    """One open question.

    Args:
        id: unique within its file.
        image_id: COCO id of the picture.
        text: the question, without suffix.
        answers: of people, ten as a rule.
        question_type: its first words; "" if the file does not tell.
        answer_type: "yes/no", "number" or "other"; "" if the file does not tell.
    """

    id: int | str
    image_id: int
    text: str
    answers: tuple[str, ...]
    question_type: str
    answer_type: str


def read_by_id(path: str | Path, key: str) -> dict[int | str, Record]:
    """The records of a file of VQA v2 by `question_id`.

    Args:
        path: the file.
        key: "questions" or "annotations", where an object holds them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, a record has no `question_id`, or one comes twice.
    """
    records: dict[int | str, Record] = {}
    for record in read_records(path, lists=(key,)):
        id = id_of(record, ("question_id",))
        if id in records:
            raise ValueError(f"{record.where}: question_id {id} comes twice; ids must be unique")
        records[id] = record
    return records


def join_answers(
    questions: Mapping[int | str, Record], answers: Mapping[int | str, Record]
) -> list[VqaQuestion]:
    """Questions with their answers; answers to other questions are no matter.

    Raises:
        ValueError: a record lacks a field or has a wrong one, a question has no answers, or the two are of
            different images.
    """
    unanswered = [id for id in questions if id not in answers]
    if unanswered:
        raise ValueError(
            f"{questions[unanswered[0]].where}: no answers to question {unanswered[0]}, nor to "
            f"{len(unanswered) - 1} others of {len(questions)}; give the answers of the same split"
        )
    return [_joined(id, question, answers[id]) for id, question in questions.items()]


def answer_texts(value: Any, where: str) -> tuple[str, ...]:
    """The answers of people: texts, objects with `answer`, lists of either as columns hold them, or one text.

    Raises:
        ValueError: it is none of these, or there are no answers.
    """
    listed = value.get("answer") if isinstance(value, Mapping) else value
    listed = [listed] if isinstance(listed, str) else listed
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}: the answers are {shown(value)}; they must be a list of at least one")
    texts: list[str] = []
    for each in listed:
        text = each.get("answer") if isinstance(each, Mapping) else each
        if not isinstance(text, str):
            raise ValueError(f"{where}: {shown(each)} is no answer; it must be a text")
        texts.append(text)
    return tuple(texts)


def _joined(id: int | str, question: Record, answer: Record) -> VqaQuestion:
    image_id = image_number(question, ("image_id",))
    if "image_id" in answer and image_number(answer, ("image_id",)) != image_id:
        raise ValueError(
            f"{answer.where}: the answers to question {id} are of image {shown(answer['image_id'])}, the "
            f"question is of image {image_id}; give the answers of the same split"
        )
    text = text_of(question, ("question",), "question")
    if not text or not text.strip():
        raise ValueError(f"{question.where}: the question is {shown(text)}; it must be a text")
    return VqaQuestion(
        id=id,
        image_id=image_id,
        text=text,
        answers=answer_texts(field_of(answer, ("answers",), "answers"), answer.where),
        question_type=str(answer.get("question_type") or ""),
        answer_type=str(answer.get("answer_type") or ""),
    )
