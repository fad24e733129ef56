"""Files of answers scored with VQA accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from .scorer import Judged, Mode, Score

ID_KEYS = ("question_id", "questionId", "id", "image")
ANSWER_KEYS = ("answer", "prediction", "response", "output", "text")

Answers = list[str | Mapping[str, Any]]


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
    """

    mode: Mode
    leave_one_out: str
    files: Mapping[str, str]
    counts: Mapping[str, int]
    share_answered: float
    mean_words: float
    judged: Sequence[Judged]
    score: Score

    @property
    def notes(self) -> list[str]:
        """What a reader has to know beside the figures, in sentences."""
        told = {
            "missing": "questions without an answer, left out",
            "null_answers": "null answers, scored 0",
            "number_answers": "answers that are numbers, read as texts",
            "empty_answers": "empty answers",
        }
        return [f"{self.counts[key]} {text}" for key, text in told.items() if self.counts[key]]


def score_files(
    results: str | Path,
    annotations: str | Path,
    questions: str | Path | None = None,
    *,
    mode: str = scorer.DEFAULT_MODE,
    leave_one_out: str = "position",
) -> Report:
    """Score a result file against annotations of VQA v2, TextVQA or VizWiz.

    Args:
        results: records with a question id and an answer; null counts as wrong.
        annotations: records with a question id and people's `answers`, as texts or objects.
        questions: question file, to check that every id occurs in it.
        mode: as in `vqa.accuracy`. "official" wants an answer to every annotated question; the others take
            a part of them.
        leave_one_out: as in `vqa.accuracy`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a file is not what it should be, ids are repeated or unknown, or some are missing
            under "official".
    """
    chosen = scorer.mode_named(mode)
    annotated = _by_id(read_records(annotations, lists=("annotations", "data")), annotations)
    given = _by_id(read_records(results), results)
    _refuse(
        [key for key in given if key not in annotated],
        f"{results}: answers to questions that {annotations} lacks",
    )
    files = {"results": str(results), "annotations": str(annotations)}
    if questions is not None:
        asked = _by_id(read_records(questions, lists=("questions", "data")), questions)
        _refuse(
            [key for key in annotated if key not in asked], f"{annotations}: questions that {questions} lacks"
        )
        files["questions"] = str(questions)
    missing = [key for key in annotated if key not in given]
    if chosen == "official":
        _refuse(
            missing,
            f"{results}: questions without an answer, which the variant official wants; or choose always",
        )
    counts: Counter[str] = Counter(questions=len(annotated), answered=len(given), missing=len(missing))
    judged = [
        _judged(key, record, _answer(given[key], counts), chosen, leave_one_out)
        for key, record in annotated.items()
        if key in given
    ]
    words = [len(each.answer.split()) for each in judged if each.answer is not None]
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


def _by_id(records: Sequence[Record], path: str | Path) -> dict[int | str, Record]:
    found: dict[int | str, Record] = {}
    repeated = []
    for record in records:
        key = id_of(record, ID_KEYS, "question id")
        if key in found:
            repeated.append(key)
        found[key] = record
    _refuse(repeated, f"{path}: repeated question ids")
    return found


def _refuse(ids: Collection[object], what: str) -> None:
    if ids:
        raise ValueError(f"{what}: {len(ids)} ({examples(ids)}); fix the file")


def _judged(key: int | str, record: Record, answer: str | None, mode: Mode, leave_one_out: str) -> Judged:
    people = _people(record)
    try:
        accuracy = (
            0.0 if answer is None else scorer.accuracy(answer, people, mode, leave_one_out=leave_one_out)
        )
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from None
    kinds = (record.get(name) for name in ("question_type", "answer_type"))
    question_type, answer_type = (kind if isinstance(kind, str) else None for kind in kinds)
    return Judged(key, question_type, answer_type, answer, accuracy)


def _people(record: Record) -> Answers:
    answers = field_of(record, ("answers",), "list of people's answers")
    if not isinstance(answers, list):
        raise ValueError(f"{record.where}: 'answers' is {shown(answers)}; it must be a list")
    for each in answers:
        text = each.get("answer") if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise ValueError(f"{record.where}: one of 'answers' is {shown(each)}; it must be a text")
    return answers


def _answer(record: Record, counts: Counter[str]) -> str | None:
    """The answer's text; counts what is odd about it."""
    value = field_of(record, ANSWER_KEYS, "answer")
    if value is None:
        counts["null_answers"] += 1
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        counts["number_answers"] += 1
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{record.where}: the answer is {shown(value)}; it must be a text")
    counts["empty_answers"] += not value.strip()
    return value
