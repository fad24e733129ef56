"""Which methods of a comparison stand in the first table and in the figures."""

from __future__ import annotations

from dataclasses import dataclass

from vlmfix.evaluation.analysis.comparison import Comparison, Row

MOST = 10
"""Rows of the first table."""


@dataclass(frozen=True)
class Selection:
    """The methods of a comparison in two parts, each with baselines before tested methods, the best first.

    Args:
        shown: the reference, stock decoding, the best baseline, and the best tested methods.
        further: all others.
        best_baseline: the one with the best headline figure, the first of equals; None if there is none.
    """

    shown: list[Row]
    further: list[Row]
    best_baseline: Row | None

    @property
    def all(self) -> list[Row]:
        """Every method."""
        return [*self.shown, *self.further]


def select(comparison: Comparison) -> Selection:
    """Choose at most ten methods by the headline figure."""
    main = comparison.main

    def merit(row: Row) -> float:
        figure = None if main is None else row.figure(main.name, main.group)
        if main is None or figure is None or not figure.is_defined:
            return float("-inf")
        return figure.estimate.value * (1 if main.better == "higher" else -1)

    reference, *others = comparison.rows
    best = max(
        (
            row
            for row in comparison.rows
            if is_baseline(row) and not row.unpaired and merit(row) > float("-inf")
        ),
        key=merit,
        default=None,
    )
    others.sort(key=lambda row: -merit(row))
    baselines = [row for row in others if is_baseline(row)]
    tested = [row for row in others if not is_baseline(row)]
    always = [row for row in baselines if row is best or not row.outcome.parameters]
    candidates = [reference, *always, *tested, *(row for row in baselines if row not in always)]
    chosen = candidates[:MOST]
    ordered = [reference, *baselines, *tested]
    return Selection(
        [row for row in ordered if row in chosen], [row for row in ordered if row not in chosen], best
    )


def is_baseline(row: Row) -> bool:
    """Whether it is there to explain a gain, and is not tested itself."""
    return row.outcome.baseline_of is not None
