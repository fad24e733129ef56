"""Ratios that may lack a denominator, and errors by object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence


def ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0.0 where `whole` is zero."""
    return part / whole if whole else 0.0


def harmonic_mean(first: float, second: float) -> float:
    """F1 of a precision and a recall; 0.0 where both are zero."""
    return ratio(2 * first * second, first + second)


def undefined(wholes: Mapping[str, float]) -> tuple[str, ...]:
    """The names of the figures whose denominator is zero."""
    return tuple(name for name, whole in wholes.items() if not whole)


def object_errors(asked: Sequence[tuple[str, bool]]) -> Mapping[str, tuple[int, int]]:
    """For each object the wrong answers or mentions and the number of all, the most errors first.

    Args:
        asked: the object of each question or mention, and whether it was right.
    """
    questions = Counter(name for name, _ in asked)
    wrong = Counter(name for name, right in asked if not right)
    order = sorted(questions, key=lambda name: (-wrong[name], name))
    return {name: (wrong[name], questions[name]) for name in order}
