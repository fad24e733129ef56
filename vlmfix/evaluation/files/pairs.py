"""Pairs of answers and questions that cannot belong together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vlmfix.evaluation.files.answer_records import Answer
from vlmfix.evaluation.files.readers import examples, shown

# Of pairs that can be compared, so many may be about something else: public releases differ in a few words,
# while every mixture of two files that was met differs in more than a third.
_MOST_WRONG, _FEWEST_WRONG = 0.02, 2
_REMEDY = "give the data that were asked about"

UNCHECKED = "pairing unchecked: the answers carry neither question nor label"
"""The note where nothing can be compared."""


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
    told = check_questions([(answer, question) for answer, question, _ in pairs], of=of)
    return [] if labels and told == [UNCHECKED] else told


def check_questions(pairs: Sequence[tuple[Answer, str]], *, of: str) -> list[str]:
    """Refuse answers to other questions than those that they are paired with; see `check_pairs`.

    Args:
        pairs: each answer, and the question of the data.
        of: the data, for messages.
    """
    asked = [(answer, question) for answer, question in pairs if answer.question is not None]
    others = [answer for answer, question in asked if not asks(answer.question or "", question)]
    if not others:
        return [] if asked else [UNCHECKED]
    told = _of_another("have another question", others, asked, of)
    if are_mixed_up(len(others), len(asked)):
        raise ValueError(f"{told}; {_REMEDY}")
    return [told]


def are_mixed_up(wrong: int, comparable: int) -> bool:
    """Whether too many pairs are about something else: more than 2 % of the comparable ones, 2 at least."""
    return wrong >= _FEWEST_WRONG and wrong > _MOST_WRONG * comparable


def asks(prompt: str, question: str) -> bool:
    """Whether the question is in the prompt, whatever stands around it."""
    words = (re.sub(r"\W+", " ", text.lower()).strip() for text in (question, prompt))
    return next(words) in next(words)


def place_of(where: str, text: str | None) -> str:
    """A row of a file for a message: its place in the file, and what it is about."""
    return f"{where.rpartition(', ')[2]}: {shown((text or '').strip())}"


def _of_another(what: str, answers: Sequence[Answer], compared: Sequence[object], of: str) -> str:
    """How many answers differ from the data, and which, in words."""
    file = answers[0].where.rpartition(", ")[0]
    places = examples(answer.where.rpartition(", ")[2] for answer in answers)
    return f"{file}: {len(answers)} of {len(compared)} answers {what} than {of} ({places})"
