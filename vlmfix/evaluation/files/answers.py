"""Answers made elsewhere: how files of any benchmark name them, and whose they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from vlmfix.evaluation.files.answer_layouts import (
    ANSWER_KEYS,
    ID_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    OTHER,
    Layout,
    recognised,
)
from vlmfix.evaluation.files.answer_records import Answer, AnswerReader, Keys
from vlmfix.evaluation.files.pairs import check_pairs
from vlmfix.evaluation.files.readers import Record, examples, read_records

__all__ = [
    "ANSWER_KEYS",
    "ID_KEYS",
    "IMAGE_KEYS",
    "LABEL_KEYS",
    "Answer",
    "Answers",
    "Keys",
    "answer_of",
    "check_pairs",
    "read_answers",
    "texts_of",
]

# Word of chat templates after which the answer begins.
_ASSISTANT = "ASSISTANT:"


class Answers(list[Answer]):
    """The answers of a file.

    Args:
        answers: in the order of the file.
        layout: as which it was read.
        used: the keys that held the fields of the answers, by field.
        notes: what a reader has to know, in sentences.
    """

    def __init__(
        self,
        answers: Iterable[Answer],
        layout: Layout = OTHER,
        used: Mapping[str, Sequence[str]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(answers)
        self.layout = layout
        self.used = dict(used or {})
        self.notes = list(notes)

    def with_(self, answers: Iterable[Answer]) -> Answers:
        """Others of the same file."""
        return Answers(answers, self.layout, self.used, self.notes)

    def reading(self, by: str) -> str:
        """How the file was read, in one line.

        Args:
            by: what the answers are joined by: a field such as "id", or other words.
        """
        answer = " or ".join(map(repr, self.used.get("answer", ())))
        joined = " or ".join(self.used.get(by, ())) or by
        return f"read as: {self.layout.title}; answer from {answer}, joined by {joined}"


def read_answers(
    path: str | Path, keys: Keys | None = None, *, what: str = "answer", numbers: bool = False
) -> Answers:
    """The answers of a file in any of the forms of `read_records`.

    Args:
        path: file.
        keys: of its records; of the usual ones for the answer, "text" counts last, as it often holds the
            question.
        what: the answer in words, for errors.
        numbers: whether an answer may be a number, which is read as a text.

    Raises:
        OSError: the file cannot be read.
        ImportError: it is a spreadsheet, and the package openpyxl is missing.
        ValueError: it is not what it should be, holds labels or questions, or several keys could hold the
            answer.
    """
    keys = keys or Keys()
    records = read_records(path)
    layout = recognised(records)
    if layout.refusal:
        if keys.answer is None:
            raise ValueError(
                f"{path} holds {layout.title}: {layout.refusal}; if it is something else, name --answer-key"
            )
        layout = OTHER
    read = AnswerReader(keys, layout, what, numbers)
    found = [read.answer(record) for record in records]
    _refuse_labels(path, found, keys)
    if keys.strip_prompt:
        found = [_stripped(each) for each in found]
    _refuse_echo(path, found)
    if keys.sample is not None:
        found = _sampled(path, found, keys.sample)
    notes = [layout.note] if layout.note else []
    notes += [f"{count} {text}" for text, count in read.counts.items()]
    prompted = sum(_holds_prompt(each) for each in found)
    if 2 * prompted > len(found):
        notes.append(f"{prompted} of {len(found)} texts hold the prompt; see --strip-prompt")
    return Answers(found, layout, read.used, notes)


def answer_of(record: Record, keys: Keys) -> Answer:
    """The answer in a record of no particular layout.

    Raises:
        ValueError: there is none, it is no text, or several keys could hold it.
    """
    return AnswerReader(keys, OTHER).answer(record)


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


def _refuse_labels(path: str | Path, answers: Sequence[Answer], keys: Keys) -> None:
    """Refuse a file whose answers are its labels."""
    labels = [str(each.label).strip().lower() for each in answers if "label" in each.record]
    texts = [(each.text or "").strip().lower() for each in answers]
    if keys.answer is None and labels == texts and set(texts) <= {"yes", "no"}:
        raise ValueError(
            f"{path}: every answer is the label beside it, so that this is a file of labels; give what the "
            "model wrote, or name --answer-key"
        )


def _refuse_echo(path: str | Path, answers: Sequence[Answer]) -> None:
    same = sum(
        bool(each.text and each.question and each.text.strip() == each.question.strip()) for each in answers
    )
    if 2 * same > len(answers):
        raise ValueError(
            f"{path}: {same} of {len(answers)} answers are the question, so that this key holds something "
            "else; choose with --answer-key"
        )


def _holds_prompt(answer: Answer) -> bool:
    text = answer.text or ""
    return _ASSISTANT in text or bool(answer.question and answer.question.strip() in text)


def _stripped(answer: Answer) -> Answer:
    """The answer without the prompt before it."""
    text = answer.text
    if text is None:
        return answer
    if _ASSISTANT in text:
        text = text.rpartition(_ASSISTANT)[2]
    elif answer.question and text.lstrip().startswith(answer.question.strip()):
        text = text.lstrip()[len(answer.question.strip()) :]
    return dataclasses.replace(answer, text=text)


def _sampled(path: str | Path, answers: Sequence[Answer], number: int) -> list[Answer]:
    """Of several rows for one question the one of that number, from 1 on."""
    rows: dict[Hashable, list[Answer]] = {}
    for each in answers:
        rows.setdefault((each.id, each.image, each.question), []).append(each)
    most = max(map(len, rows.values()))
    if most == 1:
        return list(answers)
    few = [own[0].where for own in rows.values() if len(own) < number]
    if few:
        raise ValueError(
            f"{path}: {len(few)} questions have fewer than {number} answers ({examples(few)}); choose "
            f"--sample 1 to {most}, or complete the file"
        )
    return [own[number - 1] for own in rows.values()]
