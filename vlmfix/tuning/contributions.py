"""What each part of a recipe contributes; `contribution_plot` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmfix.tuning.final import PLAIN, RECIPE
from vlmfix.tuning.measure import Measure, row_value

WHOLE = "the whole recipe"


@dataclass(frozen=True)
class Contributions:
    """How much better a recipe is in one metric than what is left when a part is taken out.

    Args:
        measure: the metric.
        gains: by part, the whole recipe first, the gain on each data set, by its name.
    """

    measure: Measure
    gains: dict[str, dict[str, float]]


def contributions(summary: Mapping[str, Any], measures: Mapping[str, Measure]) -> list[Contributions]:
    """What the parts contribute to each metric of the objective; [] for recipes of a single part, or none.

    Args:
        summary: of the search.
        measures: its metrics by name.
    """
    parts = summary["parts"]
    if len(parts) < 2:
        return []
    rows = {WHOLE: PLAIN}
    names = [part["name"] for part in parts]
    for name in names:
        others = [each for each in names if each != name]
        rows[name] = f"{others[0]} alone" if len(others) == 1 else f"without {name}"
    return [
        Contributions(
            measures[metric],
            {part: _gains(summary["test"], label, measures[metric]) for part, label in rows.items()},
        )
        for metric in summary["objective"]
    ]


def _gains(tables: Sequence[Mapping[str, Any]], label: str, measure: Measure) -> dict[str, float]:
    """By data set: how much better the recipe is than the row of that label."""
    sign = -1 if measure.better == "lower" else 1
    found = {}
    for table in tables:
        cells = {row["label"]: row for row in table["rows"]}
        recipe, other = (row_value(cells.get(each), measure.name) for each in (RECIPE, label))
        if recipe is not None and other is not None:
            found[table["data"]] = sign * (recipe - other)
    return found
