"""The final table: the recipe, its parts and all that it must beat, on images that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.comparison import Row, compare
from vlmfix.evaluation.analysis.marks import Mark, mark
from vlmfix.evaluation.analysis.roc import auc_difference, auc_swap_test
from vlmfix.evaluation.analysis.significance import holm
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.tuning.candidates import Candidate
from vlmfix.tuning.objective import AUC, COST
from vlmfix.tuning.worlds import Answered

RECIPE = "recipe"
PLAIN = "greedy"


@dataclass(frozen=True)
class Cell:
    """A metric of one row.

    Args:
        value: the point estimate.
        difference: to greedy decoding on the same samples, paired; None for greedy decoding itself.
    """

    value: float
    difference: Estimate | None


@dataclass(frozen=True)
class FinalRow:
    """One row of the final table.

    Args:
        label: as the table shows it.
        cells: by metric.
        mark: whether its difference in the first metric is more than chance, all rows counted; None for
            greedy decoding.
        cost: forward passes a token, beams multiplied in.
        seconds: that an answer took.
    """

    label: str
    cells: Mapping[str, Cell]
    mark: Mark | None
    cost: float
    seconds: float | None


@dataclass(frozen=True)
class FinalTable:
    """The rows on one data set, greedy decoding first.

    Args:
        data: name of the data set.
        images: number of its images.
        metrics: the objective first.
        rows: greedy decoding, parts alone, the recipe without each, the recipe, and what matches it.
    """

    data: str
    images: int
    metrics: tuple[str, ...]
    rows: Sequence[FinalRow]

    def row(self, label: str) -> FinalRow:
        """The row of that label."""
        return next(row for row in self.rows if row.label == label)


def compared(candidate: Candidate) -> dict[str, Candidate]:
    """What stands in the table by label: greedy decoding, each part alone, all but each part, the recipe."""
    rows = {PLAIN: Candidate()}
    names = [name for name, _ in candidate.parts]
    if len(names) > 1:
        rows |= {f"{name} alone": candidate.only(name) for name in names}
    if len(names) > 2:
        rows |= {f"without {name}": candidate.without(name) for name in names}
    return rows | {RECIPE: candidate}


def final_table(data: str, answered: Mapping[str, Answered], metrics: Sequence[str]) -> FinalTable:
    """The table of one data set.

    Args:
        data: its name.
        answered: by label, greedy decoding first; all on the same samples.
        metrics: the one that marks are about first.
    """
    outcomes = [each.named(label).outcome for label, each in answered.items()]
    [comparison] = compare(outcomes)
    in_tables = [name for name in metrics if name not in (AUC, COST)]
    areas = _areas(answered) if AUC in metrics else {}
    found = {label: each[1] for label, each in areas.items() if each[1] is not None}
    if metrics[0] != AUC:
        found = comparison.marks(metrics[0])
    rows = []
    for row in comparison.rows:
        label = row.outcome.method
        cells = {name: _cell(row, name) for name in in_tables}
        if label in areas:
            cells[AUC] = areas[label][0]
        shown = {name: cells[name] for name in metrics if name in cells}
        seconds = row.outcome.costs.get("seconds per sample")
        rows.append(FinalRow(label, shown, found.get(label), answered[label].cost, seconds))
    return FinalTable(data, len(set(outcomes[0].clusters)), tuple(metrics), rows)


def _cell(row: Row, name: str) -> Cell:
    figure = row.figure(name)
    assert figure is not None
    return Cell(figure.estimate.value, figure.difference)


def _areas(answered: Mapping[str, Answered]) -> dict[str, tuple[Cell, Mark | None]]:
    """The areas under the ROC curve, and the marks on their differences to the first."""
    (first, base), *others = answered.items()
    assert base.margins is not None
    assert base.is_yes is not None
    clusters = np.array([each.cluster for each in base.outcome.samples])
    found: dict[str, tuple[Cell, Mark | None]] = {first: (Cell(base.figures[AUC], None), None)}
    tested = {}
    for label, each in others:
        assert each.margins is not None
        kept = ~(np.isnan(each.margins) | np.isnan(base.margins))  # what both answered
        given = each.margins[kept], base.margins[kept], base.is_yes[kept], clusters[kept]
        tested[label] = auc_difference(*given), auc_swap_test(*given)
    adjusted = holm([test.p for _, test in tested.values()])
    for (label, (difference, test)), p in zip(tested.items(), adjusted, strict=True):
        found[label] = Cell(answered[label].figures[AUC], difference), mark(difference, test, p)
    return found


def evidence(tables: Sequence[FinalTable]) -> list[dict[str, Any]]:
    """The tables as rows of a recipe file."""
    rows = []
    for table in tables:
        for row in table.rows:
            for name, cell in row.cells.items():
                entry: dict[str, Any] = {
                    "data": table.data,
                    "row": row.label,
                    "metric": name,
                    "value": _rounded(cell.value),
                    "images": table.images,
                }
                if cell.difference is not None:
                    entry |= {
                        "difference": _rounded(cell.difference.value),
                        "low": _rounded(cell.difference.low),
                        "high": _rounded(cell.difference.high),
                    }
                if row.mark is not None and name == table.metrics[0]:
                    entry |= {"marked": row.mark.marked, "p": row.mark.p}
                rows.append(entry)
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
