"""Marks in a table of methods: which differences to the first method are more than chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.significance import SwapTest, holm, swap_test
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
    """

    marked: bool
    reason: str
    p: float | None


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
    joint = "and" if difference.excludes_zero == significant else "but"
    return Mark(difference.excludes_zero and significant, f"{interval} {joint} the corrected p is {p:.2g}", p)


def marks(comparison: Comparison, name: str, group: str = "") -> dict[str, Mark]:
    """The marks of a table on its one headline metric, corrected for the number of methods in it.

    The metric is chosen before the methods are run. Methods that cannot be compared are not counted.

    Args:
        comparison: the table; all methods are compared with its first.
        name: of the metric.
        group: of the metric.

    Returns:
        For each method but the first, by its label.
    """
    base, *others = comparison.rows
    found: dict[str, Mark] = {}
    tested: dict[str, tuple[Estimate, SwapTest]] = {}
    for row in others:
        first, figure = base.figure(name, group), row.figure(name, group)
        if reason := row.unpaired or _unanswered(base, row):
            found[row.outcome.method] = Mark(False, reason, None)
        elif first is None or figure is None or figure.difference is None:
            found[row.outcome.method] = Mark(False, f"{name} is undefined for one of the two", None)
        else:
            test = swap_test(figure.metric, first.metric, np.array(row.outcome.clusters))
            tested[row.outcome.method] = figure.difference, test
    adjusted = holm([test.p for _, test in tested.values()])
    for (method, (difference, test)), p in zip(tested.items(), adjusted, strict=True):
        found[method] = mark(difference, test, p)
    return {row.outcome.method: found[row.outcome.method] for row in others}


def _unanswered(*rows: Row) -> str:
    counts = {row.outcome.method: sum(each.score is None for each in row.outcome.samples) for row in rows}
    texts = [f"{method} has {count:,} samples without an answer" for method, count in counts.items() if count]
    return ", ".join(texts)
