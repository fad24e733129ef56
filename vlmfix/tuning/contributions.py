"""What each part of a recipe contributes, as bars; the template of the page draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmfix.tuning.final import PLAIN, RECIPE
from vlmfix.tuning.objective import COST
from vlmfix.tuning.pareto import Measure

WHOLE = "the whole recipe"
_NAMES, _NUMBER = 130, 52  # widths of the texts beside the bars, in pixels
_GROUP, _ROW = 24, 18  # heights


@dataclass(frozen=True)
class Bar:
    """One data set: how much is lost without the part; `left` and `length` in pixels."""

    data: str
    text: str
    y: float
    left: float
    length: float
    kind: str
    text_at: float
    anchor: str


@dataclass(frozen=True)
class Group:
    """One part of the recipe."""

    name: str
    y: float
    bars: list[Bar]


@dataclass(frozen=True)
class Chart:
    """What the parts contribute to one metric; `zero` is where bars begin."""

    measure: Measure
    width: int
    height: int
    zero: float
    groups: list[Group]


def charts(summary: Mapping[str, Any], measures: Mapping[str, Measure], *, width: int) -> list[Chart]:
    """A chart for each metric of the objective; [] for recipes of a single part, or none.

    Args:
        summary: of the search.
        measures: its metrics by name.
        width: of the picture in pixels.
    """
    parts = summary["parts"]
    if len(parts) < 2:
        return []
    rows = {WHOLE: PLAIN}
    names = [part["name"] for part in parts]
    for name in names:
        others = [each for each in names if each != name]
        rows[name] = f"{others[0]} alone" if len(others) == 1 else f"without {name}"
    return [_chart(summary["test"], rows, measures[name], width) for name in summary["objective"]]


def _chart(
    tables: Sequence[Mapping[str, Any]], rows: Mapping[str, str], measure: Measure, width: int
) -> Chart:
    found = {name: _losses(tables, label, measure) for name, label in rows.items()}
    values = [0.0, *(loss for each in found.values() for _, loss in each)]
    low, high = min(values), max(values)
    start, end = _NAMES + (_NUMBER if low < 0 else 0), width - _NUMBER

    def place(value: float) -> float:
        return round(start + (value - low) / ((high - low) or 1) * (end - start), 1)

    groups, y = [], 0.0
    for name, losses in found.items():
        bars = []
        for row, (data, loss) in enumerate(losses):
            at, is_loss = place(loss), loss < 0
            bars.append(
                Bar(
                    data,
                    measure.text(loss, signed=True),
                    y + _GROUP + _ROW * row,
                    min(at, place(0)),
                    round(abs(at - place(0)), 1),
                    "whole" if name == WHOLE else "harm" if is_loss else "gain",
                    at - 6 if is_loss else at + 6,
                    "end" if is_loss else "start",
                )
            )
        groups.append(Group(name, y, bars))
        y += _GROUP + _ROW * len(bars)
    return Chart(measure, width, round(y + 6), place(0), groups)


def _losses(tables: Sequence[Mapping[str, Any]], label: str, measure: Measure) -> list[tuple[str, float]]:
    """By data set: how much better the recipe is than the row of that label."""
    sign = -1 if measure.better == "lower" else 1
    found = []
    for table in tables:
        cells = {row["label"]: row for row in table["rows"]}
        recipe, other = (row_value(cells.get(each), measure.name) for each in (RECIPE, label))
        if recipe is not None and other is not None:
            found.append((table["data"], sign * (recipe - other)))
    return found


def row_value(row: Mapping[str, Any] | None, name: str) -> float | None:
    """A metric of a row of the final table; None: it has none."""
    if row is None:
        return None
    value: float | None = row["cost"] if name == COST else row["cells"].get(name, {}).get("value")
    return value
