"""Figures of AMBER's official script for yes/no questions, rounding included (arXiv 2311.07397)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

_START = 0.001
"""Of every denominator."""

EPSILON, EXISTENCE_EPSILON = 0.0001, 0.001
"""What is added to the denominator of F1; the second one in the block of existence."""


@dataclass(frozen=True)
class OfficialScore:
    """In percent with one decimal; no is the positive class."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def official_score(
    verdicts: Sequence[Verdict | None], labels: Sequence[Verdict], *, epsilon: float = EPSILON
) -> OfficialScore:
    """The figures of one block.

    Args:
        verdicts: what the parser made of each answer; None is wrong.
        labels: what is right.
        epsilon: added to the denominator of F1.
    """
    pairs = list(zip(verdicts, labels, strict=True))
    right = pairs.count(("yes", "yes")) + pairs.count(("no", "no"))
    accuracy = _percent(right, len(pairs))
    precision = _percent(pairs.count(("no", "no")), list(verdicts).count("no"))
    recall = _percent(pairs.count(("no", "no")), list(labels).count("no"))
    p, r = precision / 100, recall / 100
    return OfficialScore(accuracy, precision, recall, round(100 * 2 * p * r / (p + r + epsilon), 1))


def _percent(part: int, whole: int) -> float:
    return round(100 * part / (_START + whole), 1)
