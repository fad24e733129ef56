"""Which answer of POPE belongs to which label, and pairs that cannot be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from vlmfix.evaluation.files.answers import Answer
from vlmfix.evaluation.files.pairs import are_mixed_up, asks, place_of
from vlmfix.evaluation.files.readers import examples

from .files import Label
from .questions import asked_object

Join = Literal["position", "id", "question"]


@dataclass(frozen=True)
class Pairing:
    """Which answers belong to which labels, and what does not.

    Args:
        join: what they were paired by.
        pairs: in the order of the labels.
        surplus: by position, the answers beyond the last label.
        missing: labels without an answer.
        unknown: answers whose id is of no label.
        duplicates: other answers to an id that had occurred.
        repeated: the same answers to an id that had occurred, which count once.
        duplicate_labels: labels whose id had occurred.
        disagreeing: pairs whose ids, questions or images differ.
    """

    join: Join
    pairs: list[tuple[Answer, Label]]
    surplus: list[Answer]
    missing: int
    unknown: int
    duplicates: int
    repeated: int
    duplicate_labels: int
    disagreeing: int


_Row = TypeVar("_Row", Answer, Label)


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
        join: by position, by id, or by image and asked object.
        partial: let missing, unknown and duplicate ids and null answers be, or at a position what one list
            lacks; of duplicates the first counts.
        truncate: by position, let one list be longer, as the official script does.

    Raises:
        ValueError: for lists that do not fit each other, if not let be.
    """
    if join == "position":
        if len(answers) != len(labels) and not (partial or truncate):
            raise ValueError(
                f"{len(answers)} answers for {len(labels)} labels, paired by position; complete the file,"
                " or pass --allow-partial"
            )
        pairs = list(zip(answers, labels, strict=False))
        surplus = list(answers[len(labels) :])
        missing = len(labels) - len(pairs)
        pairs = _without_null(pairs, partial)
        return Pairing(join, pairs, surplus, missing, 0, 0, 0, 0, _disagreeing(pairs))
    first_answers, more = _by_key(answers, join)
    repeated = [key for key, answer in more if _said(answer) != _said(first_answers[key])]
    first_labels, more_labels = _by_key(labels, join)
    repeated_labels = [key for key, _ in more_labels]
    unknown = [key for key in first_answers if key not in first_labels]
    missing_ids = [key for key in first_labels if key not in first_answers]
    problems = {
        "labels without an answer": missing_ids,
        f"answers with an unknown {join}": unknown,
        f"answers with a repeated {join}": repeated,
        f"labels with a repeated {join}": repeated_labels,
    }
    if any(problems.values()) and not partial:
        found = "; ".join(f"{len(ids)} {what} ({examples(ids)})" for what, ids in problems.items() if ids)
        raise ValueError(
            f"{found}; {join}s are joined within one split: give each split its own files,"
            " complete the file, or pass --allow-partial"
        )
    pairs = [(first_answers[key], label) for key, label in first_labels.items() if key in first_answers]
    pairs = _without_null(pairs, partial)
    same = len(more) - len(repeated)
    counts = (len(missing_ids), len(unknown), len(repeated), same, len(repeated_labels))
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


def _without_null(pairs: Sequence[tuple[Answer, Label]], partial: bool) -> list[tuple[Answer, Label]]:
    """The pairs that have an answer.

    Raises:
        ValueError: some have none, and must not be left out.
    """
    null = [answer.where for answer, _ in pairs if answer.text is None]
    if null and not partial:
        raise ValueError(
            f"{len(null)} null answers ({examples(null)}); complete the file, or leave these out with "
            "--allow-partial"
        )
    return [(answer, label) for answer, label in pairs if answer.text is not None]


def _by_key(rows: Sequence[_Row], join: Join) -> tuple[dict[int | str, _Row], list[tuple[int | str, _Row]]]:
    """The first row of each id or question, and the others with theirs."""
    first: dict[int | str, _Row] = {}
    repeated = []
    for row in rows:
        key = row.id if join == "id" else _question_key(row)
        if key is None:
            lacks = "no question id" if join == "id" else "no image and question of POPE's form"
            raise ValueError(f"{row.where}: {lacks} to join by; add it or use --pairing position")
        if key in first:
            repeated.append((key, row))
        else:
            first[key] = row
    return first, repeated


def _said(answer: Answer) -> tuple[str | None, ...]:
    """What is the same in rows that stand in a file twice."""
    return answer.text, answer.question, answer.image


def _question_key(row: Answer | Label) -> str | None:
    """Image and asked object, for the words of a question differ between releases."""
    asked = row.object if isinstance(row, Label) else asked_object(row.question or "")
    return None if row.image is None or asked is None else f"{asked} in {_stem(row.image)}"


def check_pairs(pairing: Pairing, files: str) -> bool:
    """Refuse pairs of which many are about another image or object.

    Args:
        pairing: of the answers and labels.
        files: both, in words.

    Returns:
        Whether there was anything to compare.

    Raises:
        ValueError: more than 2 % of those that can be compared are, two at least; names the first.
    """
    comparable = [
        (answer, label)
        for answer, label in pairing.pairs
        if (answer.question and label.question) or (answer.image and label.image) or answer.label
    ]
    wrong = [(answer, label) for answer, label in comparable if _is_of_another(answer, label)]
    if not are_mixed_up(len(wrong), len(comparable)):
        return bool(comparable)
    found = examples(f"{_told(answer)} with {_told(label)}" for answer, label in wrong)
    remedy = "give the label file of these answers"
    if pairing.join == "id":
        remedy += ", or --pairing question where both have images"
    if pairing.join == "position":
        remedy += ", or --pairing id or question where both have them"
    raise ValueError(
        f"{files} do not belong together: {len(wrong)} of {len(comparable)} pairs by {pairing.join} are "
        f"about another image or object, or have another label ({found}); {remedy}"
    )


def _told(row: Answer | Label) -> str:
    return place_of(row.where, row.question or row.image)


def _disagreeing(pairs: Sequence[tuple[Answer, Label]]) -> int:
    """Pairs of which one side tells of another question than the other."""
    return sum(
        _is_of_another(answer, label) or (None not in (answer.id, label.id) and answer.id != label.id)
        for answer, label in pairs
    )


def _is_of_another(answer: Answer, label: Label) -> bool:
    """Whether image, object or label differ; of questions in other words, objects are compared."""
    if answer.question and label.question and not asks(answer.question, label.question):
        asked = asked_object(answer.question)
        if asked is None or asked != label.object:
            return True
    if answer.label is not None and answer.label != label.label:
        return True
    return bool(answer.image and label.image and _stem(answer.image) != _stem(label.image))


def _stem(path: str) -> str:
    """`"val2014/COCO_val2014_000000000042.jpg"` and `"000000000042.png"` have the same."""
    name = re.split(r"[/\\]", path)[-1]
    stem = name.rpartition(".")[0] or name
    return stem[-12:].zfill(12) if stem[-12:].isdigit() else stem
