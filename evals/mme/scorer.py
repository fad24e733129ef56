"""Accuracy, accuracy+ and score of MME (arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from vlmfix.evaluation.tasks.ratios import ratio
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .subtasks import missing


@dataclass(frozen=True)
class Score:
    """The figures of one subtask; yes is the positive class, and answers that say neither are `other`.

    Args:
        questions: that were answered.
        correct: of these.
        images: whose two questions were answered.
        both: of these, with both questions right.
    """

    questions: int
    correct: int
    images: int
    both: int
    true_yes: int
    false_no: int
    true_no: int
    false_yes: int
    other: int

    @property
    def acc(self) -> float:
        """Share of right questions."""
        return ratio(self.correct, self.questions)

    @property
    def acc_plus(self) -> float:
        """Share of images with both questions right."""
        return ratio(self.both, self.images)

    @property
    def score(self) -> float:
        """From 0 to 200."""
        return 100 * (self.acc + self.acc_plus)


def score(verdicts: Sequence[Verdict | None], labels: Sequence[Verdict], units: Sequence[Hashable]) -> Score:
    """The figures of a subtask.

    Args:
        verdicts: what a parser made of each answer; None is other, and wrong.
        labels: what is right.
        units: the image of each question. To the calculation file, two lines that follow each other are one.
    """
    pairs = list(zip(verdicts, labels, strict=True))
    by_unit: dict[Hashable, list[bool]] = {}
    for unit, (verdict, label) in zip(units, pairs, strict=True):
        by_unit.setdefault(unit, []).append(verdict == label)
    return Score(
        questions=len(pairs),
        correct=sum(verdict == label for verdict, label in pairs),
        images=len(by_unit),
        both=sum(map(all, by_unit.values())),
        true_yes=pairs.count(("yes", "yes")),
        false_no=pairs.count(("no", "yes")),
        true_no=pairs.count(("no", "no")),
        false_yes=pairs.count(("yes", "no")),
        other=sum(verdict is None for verdict in verdicts),
    )


@dataclass(frozen=True)
class Sum:
    """A sum of scores over a number of subtasks, without those that are missing: then it is partial."""

    score: float
    subtasks: int
    missing: Sequence[str]


def sum_of(scores: Mapping[str, Score], over: Sequence[str]) -> Sum:
    """The sum of the scores of some subtasks.

    Args:
        scores: by subtask, as far as they were asked.
        over: the subtasks of the sum.
    """
    there = [scores[name].score for name in over if name in scores]
    return Sum(sum(there), len(over), missing(over, scores))
