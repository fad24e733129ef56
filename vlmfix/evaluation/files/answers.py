"""Answers made elsewhere: how files of any benchmark name them, and whose they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.readers import Record, examples, field_of, id_of, read_records, text_of

ANSWER_KEYS = (
    "answer",
    "prediction",
    "response",
    "output",
    "caption",
    "ans",
    "model_prediction",
    "model_answer",
    "filtered_resps",
    "text",
)
QUESTION_KEYS = ("query", "question", "prompt", "input", "text")
IMAGE_KEYS = ("image", "image_name", "image_source")
ID_KEYS = ("question_id", "id", "qid")
LABEL_KEYS = ("label", "target", "gt", "gt_answer", "ground_truth")

# Of pairs that can be compared, so many may be about something else: public releases differ in a few words.
_MOST_WRONG, _FEWEST_WRONG = 0.02, 2
_REMEDY = "give the data that were asked about"


@dataclass(frozen=True)
class Keys:
    """Keys of a record for its answer, its id and what is right; None: the usual one that is there."""

    answer: str | None = None
    id: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Answer:
    """One answer of a file.

    Args:
        text: raw; None for null, which is no answer, while "" is an empty one.
        id: of the question; None where the file has none. So too `question` and `image`.
        question: what was asked.
        image: as the file names it.
        label: what is right, as the file has it; None where it does not tell.
        where: place in the file, in words.
        record: all that the file says.
    """

    text: str | None
    id: int | str | None
    question: str | None
    image: str | None
    label: Any
    where: str
    record: Record


def read_answers(path: str | Path, keys: Keys | None = None) -> list[Answer]:
    """The answers of a file in any of the forms of `read_records`.

    Args:
        path: file.
        keys: of its records; of the usual ones for the answer, "text" counts last, as it often holds the
            question.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be, or several keys could hold the answer.
    """
    return [answer_of(record, keys or Keys()) for record in read_records(path)]


def answer_of(record: Record, keys: Keys) -> Answer:
    """The answer in a record.

    Raises:
        ValueError: there is none, it is no text, or several keys could hold it.
    """
    found = [name for name in ANSWER_KEYS if name in record and name != "text"]
    if keys.answer is None and len(found) > 1:
        raise ValueError(
            f"{record.where}: {' and '.join(map(repr, found))} could both be the answer; choose with "
            "--answer-key"
        )
    names = (keys.answer,) if keys.answer is not None else (*found, *ANSWER_KEYS)
    used = next((name for name in names if name in record), None)
    text = text_of(record, names, "answer")
    asked = _optional(record, [name for name in QUESTION_KEYS if name != used])
    labels = (keys.label,) if keys.label is not None else LABEL_KEYS
    label = next((record[name] for name in labels if name in record and name != used), None)
    id = None
    if keys.id is not None or any(name in record for name in ID_KEYS):
        id = id_of(record, (keys.id,) if keys.id is not None else ID_KEYS, "question id")
    if keys.label is not None:
        field_of(record, labels, "label")
    return Answer(text, id, asked, _optional(record, IMAGE_KEYS), label, record.where, record)


def texts_of(
    answers: Sequence[Answer],
    wanted: Collection[Hashable],
    key: Callable[[Answer], Hashable],
    *,
    by: str = "id",
    partial: bool = False,
) -> tuple[dict[Hashable, str | None], list[str]]:
    """The text of each wanted answer, and what had to be told on the way.

    Rows that are the same to the letter count once.

    Args:
        answers: of a file, null ones among them.
        wanted: keys of the questions.
        key: that of an answer.
        by: what the key is, for messages.
        partial: leave out what is missing, unknown or null, and of several different answers to a question
            all but the first, instead of refusing them.

    Returns:
        Texts by key, None for what is missing or null; and sentences with the counts of what was left out.

    Raises:
        ValueError: answers are missing, unknown, null or contradict each other.
    """
    asked = set(wanted)
    found: dict[Hashable, str | None] = {}
    unknown, twice, same = [], [], 0
    for answer in answers:
        own = key(answer)
        if own not in asked:
            unknown.append(own)
        elif own not in found:
            found[own] = answer.text
        elif found[own] == answer.text:
            same += 1
        else:
            twice.append(own)
    problems = {
        "questions without an answer": [own for own in wanted if own not in found],
        f"answers with an unknown {by}": unknown,
        "null answers": [own for own, text in found.items() if text is None],
        f"further, different answers to the same {by}": twice,
    }
    told = [f"{len(keys)} {what} ({examples(keys)})" for what, keys in problems.items() if keys]
    if told and not partial:
        raise ValueError(f"{'; '.join(told)}; complete the file, or leave these out with --allow-partial")
    notes = [f"left out: {each}" for each in told]
    if same:
        notes.append(f"{same} rows repeat another one and count once")
    return {own: found.get(own) for own in wanted}, notes


def check_pairs(
    pairs: Sequence[tuple[Answer, str, str]], label_of: Callable[[Answer], str], *, of: str
) -> list[str]:
    """Refuse answers to other questions than those that they are paired with, or with other labels.

    Args:
        pairs: each answer, and the question and label of the data.
        label_of: the label that an answer carries, in the words of the data; it has one.
        of: the data, for messages.

    Returns:
        Sentences: that there was nothing to compare, or how many questions differ where they are few.

    Raises:
        ValueError: a label differs, or more than 2 % of the questions and at least two do.
    """
    labels = [(answer, label) for answer, _, label in pairs if answer.label is not None]
    wrong = [answer for answer, label in labels if label_of(answer) != label]
    if wrong:
        raise ValueError(f"{_of_another('carry another label', wrong, labels, of)}; {_REMEDY}")
    asked = [(answer, question) for answer, question, _ in pairs if answer.question is not None]
    others = [answer for answer, question in asked if not _asks(answer.question or "", question)]
    if not others:
        return [] if asked or labels else ["pairing unchecked: the answers carry neither question nor label"]
    told = _of_another("have another question", others, asked, of)
    if len(others) >= _FEWEST_WRONG and len(others) > _MOST_WRONG * len(asked):
        raise ValueError(f"{told}; {_REMEDY}")
    return [told]


def _of_another(what: str, answers: Sequence[Answer], compared: Sequence[object], of: str) -> str:
    """How many answers differ from the data, and which, in words."""
    file = answers[0].where.rpartition(", ")[0]
    places = examples(answer.where.rpartition(", ")[2] for answer in answers)
    return f"{file}: {len(answers)} of {len(compared)} answers {what} than {of} ({places})"


def _asks(prompt: str, question: str) -> bool:
    """Whether a prompt, which may have a suffix, has the words of the question in it."""
    words = [re.sub(r"\W+", " ", text.lower()).strip() for text in (question, prompt)]
    return words[0] in words[1]


def _optional(record: Record, names: Sequence[str]) -> str | None:
    """The first text under these keys; what is no text only helps to compare, so it does not matter."""
    return next((value for name in names if isinstance(value := record.get(name), str)), None)
