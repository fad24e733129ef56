"""Marks in a table of methods: which differences of its one headline metric are more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.analysis.significance import SwapTest, holm
from vlmfix.evaluation.analysis.statistics import Estimate

SIGNIFICANT = 0.05
FEWEST_IMAGES = 10
FEWEST_DIFFERING = 6
"""Below that, the exact p is above .05 even if all images agree on the direction."""


@dataclass(frozen=True)
class Mark:
    """Whether a difference is marked in a table, and why or why not.

    Args:
        marked: whether it is.
        reason: in words.
        p: of the swap test, corrected for the number of methods; None where nothing was tested.
        contradicts: whether interval and test disagree, so that there is no mark and both must be shown.
    """

    marked: bool
    reason: str
    p: float | None
    contradicts: bool = False


def mark(difference: Estimate, test: SwapTest, p: float) -> Mark:
    """The rule for one difference: enough images, and an interval and a test that agree.

    Args:
        difference: of the headline metric, paired.
        test: the swap test of the same two methods and metric.
        p: of this test, corrected by `holm` for all methods of the table.
    """
    if test.images < FEWEST_IMAGES:
        return Mark(False, f"only {test.images} images; a mark needs {FEWEST_IMAGES}", p)
    if test.differing < FEWEST_DIFFERING:
        return Mark(False, f"they differ on {test.differing} images; a mark needs {FEWEST_DIFFERING}", p)
    interval = f"the interval {'excludes' if difference.excludes_zero else 'includes'} 0"
    significant = p < SIGNIFICANT
    contradicts = difference.excludes_zero != significant
    reason = f"{interval} {'but' if contradicts else 'and'} the corrected p is {p:.2g}"
    return Mark(difference.excludes_zero and significant, reason, p, contradicts)


def corrected(tested: Mapping[str, tuple[Estimate, SwapTest]]) -> dict[str, Mark]:
    """The marks of several methods, by Holm's correction for all of them.

    Args:
        tested: difference and test of each, by its label.
    """
    adjusted = holm([test.p for _, test in tested.values()])
    return {
        method: mark(difference, test, p)
        for (method, (difference, test)), p in zip(tested.items(), adjusted, strict=True)
    }


def unanswered(*outcomes: Outcome) -> str:
    """Which methods have samples without an answer, and so no mark; "" if none has."""
    counts = {each.method: sum(sample.score is None for sample in each.samples) for each in outcomes}
    texts = [f"{method} has {count:,} samples without an answer" for method, count in counts.items() if count]
    return ", ".join(texts)
