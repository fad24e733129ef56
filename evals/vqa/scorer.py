"""VQA accuracy: how many of ten people gave the answer, leave one out (arXiv 1505.00468)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vlmfix.evaluation.tasks.ratios import ratio

from .normalize import (
    OFFICIAL_DOTS,
    gqa_normalized,
    m4c_normalized,
    normalized,
    on_one_line,
)

Mode = Literal["official", "always", "m4c", "gqa"]
LeaveOneOut = Literal["position", "dict"]

LEAVE_ONE_OUT: tuple[LeaveOneOut, ...] = get_args(LeaveOneOut)
MODES: tuple[Mode, ...] = get_args(Mode)
OF_PEOPLE: tuple[Mode, ...] = ("official", "always", "m4c")
"""Those that count how many people agree; `gqa` compares with one answer."""
DEFAULT_MODE: Mode = "always"
ALIASES: dict[str, Mode] = {"evalai": "m4c"}
"""Other names of modes: TextVQA's evaluator is known by both."""

M4C_ANSWERS = 10


def mode_named(name: str) -> Mode:
    """The mode of that name or alias.

    Raises:
        ValueError: if there is none.
    """
    for mode in MODES:
        if ALIASES.get(name, name) == mode:
            return mode
    raise ValueError(f"unknown variant {name!r}; choose from {', '.join((*MODES, *ALIASES))}")


def accuracy(
    prediction: str,
    answers: Sequence[str | Mapping[str, Any]],
    mode: str = DEFAULT_MODE,
    *,
    leave_one_out: str = "position",
) -> float:
    """The mean over people of `min(1, others who gave the prediction / 3)`.

    Args:
        prediction: the answer to be judged.
        answers: what people said, as texts or as VQA annotations with an `answer` each.
        mode: "always" normalises both sides. "official" does so only where people differ, and deletes
            32 dots at most. "m4c" (or "evalai") is TextVQA's evaluator and wants ten answers. "gqa" wants
            one, which must be the same but for case and a final dot, and gives 1.0 or 0.0.
        leave_one_out: "position" leaves out the person; "dict" every person with equal fields, which is
            what the official code does with answers that lack ids.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: for an unknown mode or way to leave one out, no answers, under "m4c" not ten, or under
            "gqa" not one.
    """
    chosen = mode_named(mode)
    if leave_one_out not in LEAVE_ONE_OUT:
        raise ValueError(f"unknown leave_one_out {leave_one_out!r}; choose from {', '.join(LEAVE_ONE_OUT)}")
    given = [each if isinstance(each, str) else str(each["answer"]) for each in answers]
    if not given:
        raise ValueError("no answers to compare with; give at least one")
    if chosen == "m4c" and len(given) != M4C_ANSWERS:
        raise ValueError(f"{len(given)} answers; the variant m4c needs ten, choose official or always")
    if chosen == "gqa":
        if len(given) != 1:
            raise ValueError(f"{len(given)} answers; the variant gqa needs one, choose official or always")
        return float(gqa_normalized(prediction) == gqa_normalized(given[0]))
    said, *people = _comparable([prediction, *given], chosen)
    if leave_one_out == "dict":
        fields = [
            {} if isinstance(each, str) else {key: value for key, value in each.items() if key != "answer"}
            for each in answers
        ]
        persons = list(zip(people, fields, strict=True))
        hits = [sum(other != person and other[0] == said for other in persons) for person in persons]
    else:
        total = people.count(said)
        hits = [total - (person == said) for person in people]
    shares = [min(1.0, count / 3) for count in hits]
    return sum(shares) / len(shares)


@dataclass(frozen=True)
class Judged:
    """The accuracy of the answer to one question."""

    question_id: int | str
    question_type: str | None
    answer_type: str | None
    answer: str
    accuracy: float


@dataclass(frozen=True)
class Group:
    """The mean accuracy of some questions.

    Args:
        questions: how many.
        accuracy: from 0 to 1, in full precision; 0.0 if there are none.
        rounded: in percent with two decimals, as the official script prints it.
        undefined: whether there are no questions.
    """

    questions: int
    accuracy: float
    rounded: float
    undefined: bool


@dataclass(frozen=True)
class Score:
    """The mean over all questions, over each question type and over each answer type."""

    overall: Group
    question_types: Mapping[str, Group]
    answer_types: Mapping[str, Group]


def score(judged: Sequence[Judged]) -> Score:
    """The means over questions."""
    question_types: defaultdict[str, list[Judged]] = defaultdict(list)
    answer_types: defaultdict[str, list[Judged]] = defaultdict(list)
    for each in judged:
        if each.question_type is not None:
            question_types[each.question_type].append(each)
        if each.answer_type is not None:
            answer_types[each.answer_type].append(each)
    return Score(
        overall=_group(judged),
        question_types={name: _group(members) for name, members in sorted(question_types.items())},
        answer_types={name: _group(members) for name, members in sorted(answer_types.items())},
    )


def _comparable(texts: list[str], mode: Mode) -> list[str]:
    """The prediction and the answers after it, so that equal ones are equal texts."""
    if mode == "m4c":
        return [m4c_normalized(text) for text in texts]
    if mode == "always":
        return [normalized(text) for text in texts]
    lines = [on_one_line(text) for text in texts]
    agreed = len(set(lines[1:])) == 1
    return lines if agreed else [normalized(line, dots=OFFICIAL_DOTS) for line in lines]


def _group(members: Sequence[Judged]) -> Group:
    total = sum(each.accuracy for each in members)
    # in this order, as the official script divides and rounds
    rounded = round(100 * float(total) / len(members), 2) if members else 0.0
    return Group(len(members), ratio(total, len(members)), rounded, not members)
