"""Files of answers scored with VQA accuracy."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.files.answers import ID_KEYS, Answer, Answers, Keys, read_answers
from vlmfix.evaluation.files.index import Index
from vlmfix.evaluation.files.pairs import check_questions
from vlmfix.evaluation.files.readers import (
    Record,
    examples,
    field_of,
    id_of,
    read_records,
    sha256_of,
    shown,
)
from vlmfix.evaluation.tasks.ratios import ratio

from . import scorer
from .normalize import normalized
from .scorer import Judged, Mode, Score

# VizWiz has one question to an image.
_ID_KEYS = (*ID_KEYS, "image")
# From so many answers on, it is no chance that none of them changes when it is normalised.
_FEWEST_NORMALISED = 20


@dataclass(frozen=True)
class Report:
    """Figures of one result file.

    Args:
        mode: of the comparison.
        leave_one_out: as in `vqa.accuracy`.
        files: paths with SHA-256.
        counts: questions, answered ones, and answers by what is odd about them.
        share_answered: answered questions over annotated ones.
        mean_words: words per answer.
        judged: the answered questions, in the order of the annotations.
        score: their means.
        read: how the results were read, in sentences.
    """

    mode: Mode
    leave_one_out: str
    files: Mapping[str, str]
    counts: Mapping[str, int]
    share_answered: float
    mean_words: float
    judged: Sequence[Judged]
    score: Score
    read: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know beside the figures, in sentences."""
        told = {
            "missing": "questions without an answer, left out",
            "null_answers": "null answers, left out",
            "repeated": "answers that stand there twice, taken once",
            "empty_answers": "empty answers",
        }
        found = [
            *self.read,
            *(f"{self.counts[key]} {text}" for key, text in told.items() if self.counts[key]),
        ]
        texts = [each.answer for each in self.judged]
        if len(texts) >= _FEWEST_NORMALISED and all(text == normalized(text) for text in texts):
            found.append(
                "every answer is normalised already, as in LLaVA's submissions: the raw texts are lost, and "
                "only --variant always gives the figures that they would have"
            )
        return found


def score_files(
    results: str | Path,
    annotations: str | Path,
    questions: str | Path | None = None,
    *,
    mode: str = scorer.DEFAULT_MODE,
    leave_one_out: str = "position",
    keys: Keys | None = None,
    index: str | Path | None = None,
) -> Report:
    """Score a result file against annotations of VQA v2, TextVQA or VizWiz.

    Args:
        results: records with a question id and an answer, in any of the forms of `read_answers`; null is no
            answer.
        annotations: records with a question id and people's `answers`, as texts or objects.
        questions: question file, to check that every id occurs in it.
        mode: as in `vqa.accuracy`. "official" wants an answer to every annotated question; the others take
            a part of them.
        leave_one_out: as in `vqa.accuracy`.
        keys: of the records; that of what is right is of people's answers in the annotations.
        index: file from running numbers, such as lmms-eval's `doc_id`, to question ids.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be, ids are repeated or unknown, or some are missing
            under "official", or more than 2 % of the answers are to another question.
    """
    chosen = scorer.mode_named(mode)
    keys = keys or Keys()
    ids = [*filter(None, [keys.id]), *_ID_KEYS]
    annotated = _by_id(read_records(annotations, lists=("annotations", "data")), annotations, ids)
    read = read_answers(results, dataclasses.replace(keys, label=None), numbers=True)
    numbered = None if index is None else Index(index, ("question_id",))
    counts: Counter[str] = Counter(questions=len(annotated))
    given = _texts_by_id(read, results, numbered, counts)
    _refuse(
        [key for key in given if key not in annotated],
        f"{results}: answers to questions that {annotations} lacks",
    )
    files = {"results": str(results), "annotations": str(annotations)}
    if index is not None:
        files["index"] = str(index)
    asked: dict[int | str, Record] = {}
    if questions is not None:
        asked = _by_id(read_records(questions, lists=("questions", "data")), questions, ids)
        _refuse(
            [key for key in annotated if key not in asked], f"{annotations}: questions that {questions} lacks"
        )
        files["questions"] = str(questions)
    pairs = [
        (answer, text) for key, answer in given.items() if (text := _asked(answer, asked.get(key), numbered))
    ]
    checked = check_questions(pairs, of=str(questions or index))
    missing = [key for key in annotated if key not in given]
    if chosen == "official":
        _refuse(
            missing,
            f"{results}: questions without an answer, which the variant official wants; or choose always",
        )
    counts.update(answered=len(given), missing=len(missing))
    counts["empty_answers"] = sum(not (answer.text or "").strip() for answer in given.values())
    people = "answers" if keys.label is None else keys.label
    judged = [
        _judged(key, record, given[key].text or "", chosen, leave_one_out, people)
        for key, record in annotated.items()
        if key in given
    ]
    words = [len(each.answer.split()) for each in judged]
    by = "id" if index is None else f"the numbers in {Path(index).name}"
    told = [read.reading(by), *read.notes, *checked]
    hashes = {f"{name}_sha256": sha256_of(path) for name, path in files.items()}
    return Report(
        mode=chosen,
        leave_one_out=leave_one_out,
        files=files | hashes,
        counts=counts,
        share_answered=ratio(len(given), len(annotated)),
        mean_words=ratio(sum(words), len(words)),
        judged=judged,
        score=scorer.score(judged),
        read=told,
    )


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON document, with every question."""
    return {
        "task": "vqa",
        "variant": report.mode,
        "leave_one_out": report.leave_one_out,
        "files": report.files,
        "counts": report.counts,
        "share_answered": report.share_answered,
        "mean_words": report.mean_words,
        "scores": asdict(report.score),
        "questions": [{**vars(each), "rounded": round(100 * each.accuracy, 2)} for each in report.judged],
        "notes": report.notes,
    }


def _texts_by_id(
    read: Answers, path: str | Path, index: Index | None, counts: Counter[str]
) -> dict[int | str, Answer]:
    """The answers that have a text, by question; counts null ones and those that come again."""
    found: dict[int | str, Answer] = {}
    repeated = []
    for answer in read:
        key = _question_id(answer, index)
        if key in found and (found[key].text, found[key].question) != (answer.text, answer.question):
            repeated.append(key)
        counts["repeated"] += key in found
        counts["null_answers"] += answer.text is None
        found.setdefault(key, answer)
    _refuse(repeated, f"{path}: different answers to the same question ids")
    return {key: answer for key, answer in found.items() if answer.text is not None}


def _question_id(answer: Answer, index: Index | None) -> int | str:
    if index is not None:
        return id_of(index[answer], ("question_id",), "question id")
    if answer.id is None and answer.number is not None:
        raise ValueError(
            f"{answer.where}: no question id, and {answer.number} only counts the rows of a run; say with "
            "--index FILE which question_id each number stands for"
        )
    if answer.id is not None:
        return answer.id
    return id_of(answer.record, _ID_KEYS, "question id")


def _asked(answer: Answer, question: Record | None, index: Index | None) -> str | None:
    """The question that an answer is joined to, where a file has its text."""
    record = question if question is not None or index is None else index[answer]
    text = None if record is None else record.get("question")
    return text if isinstance(text, str) else None


def _by_id(records: Sequence[Record], path: str | Path, keys: Sequence[str]) -> dict[int | str, Record]:
    found: dict[int | str, Record] = {}
    repeated = []
    for record in records:
        key = id_of(record, keys, "question id")
        if key in found:
            repeated.append(key)
        found[key] = record
    _refuse(repeated, f"{path}: repeated question ids")
    return found


def _refuse(ids: Collection[object], what: str) -> None:
    if ids:
        raise ValueError(f"{what}: {len(ids)} ({examples(ids)}); fix the file")


def _judged(
    key: int | str, record: Record, answer: str, mode: Mode, leave_one_out: str, label_key: str
) -> Judged:
    people = _people(record, label_key)
    try:
        accuracy = scorer.accuracy(answer, people, mode, leave_one_out=leave_one_out)
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from None
    kinds = (record.get(name) for name in ("question_type", "answer_type"))
    question_type, answer_type = (kind if isinstance(kind, str) else None for kind in kinds)
    return Judged(key, question_type, answer_type, answer, accuracy)


def _people(record: Record, key: str) -> list[str | Mapping[str, Any]]:
    answers = field_of(record, (key,), "list of people's answers")
    if not isinstance(answers, list):
        raise ValueError(f"{record.where}: {key!r} is {shown(answers)}; it must be a list")
    for each in answers:
        text = each.get("answer") if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise ValueError(f"{record.where}: one of {key!r} is {shown(each)}; it must be a text")
    return answers
