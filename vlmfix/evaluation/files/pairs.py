"""Pairs of answers and questions that cannot belong together."""

from __future__ import annotations

import re

from vlmfix.evaluation.files.answers import Answer
from vlmfix.evaluation.files.readers import shown

# Of pairs that can be compared, so many may be about something else: public releases differ in a few words,
# while every mixture of two files that was met differs in more than a third.
_MOST_WRONG, _FEWEST_WRONG = 0.02, 2

UNCHECKED = (
    "pairing unchecked: nothing but ids or places joins the files, so that answers to other questions would "
    "not show"
)
"""The note where nothing can be compared."""


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


def refuse_other_questions(pairs: list[tuple[Answer, str]], files: str) -> bool:
    """Refuse answers of which many were given to another question than the one that they are joined to.

    Args:
        pairs: answers, each with the question to which it is joined.
        files: that are joined, in words.

    Returns:
        Whether there was anything to compare.

    Raises:
        ValueError: too many differ; names the first.
    """
    comparable = [(answer, question) for answer, question in pairs if answer.question]
    wrong = [(answer, text) for answer, text in comparable if not asks(answer.question or "", text)]
    if are_mixed_up(len(wrong), len(comparable)):
        told = "; ".join(
            f"{place_of(answer.where, answer.question)} with {shown(text)}" for answer, text in wrong[:3]
        )
        raise ValueError(
            f"{files} do not belong together: {len(wrong)} of {len(comparable)} answers are to another "
            f"question ({told}); give the files of the same questions"
        )
    return bool(comparable)
