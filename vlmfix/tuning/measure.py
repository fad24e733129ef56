"""Metrics of a search as its page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vlmfix.evaluation.report.formatting import number
from vlmfix.tuning.objective import COST


@dataclass(frozen=True)
class Measure:
    """A metric as the page shows it.

    Args:
        name: of the metric.
        better: "higher", "lower", or "" for neither.
        percent: whether it is a share.
    """

    name: str
    better: str
    percent: bool

    @property
    def head(self) -> str:
        """Its name with its unit."""
        return f"{self.name}, %" if self.percent else self.name

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """A value as tables show it."""
        return "-" if value is None else number(value, percent=self.percent, signed=signed)


def mean_of(figures: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """The mean of a metric over the data sets; None where one lacks it."""
    values = [each.get(name) for each in figures.values()]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def row_value(row: Mapping[str, Any] | None, name: str) -> float | None:
    """A metric of a row of the final table; None: it has none."""
    if row is None:
        return None
    value: float | None = row["cost"] if name == COST else row["cells"].get(name, {}).get("value")
    return value
