"""Axes and labels of plots, in pixels; templates draw them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vlmfix.evaluation.report.formatting import number

_LETTER = 7.0  # width in pixels
_LINE = 14


@dataclass(frozen=True)
class Axis:
    """One axis: its title, and where values lie on it in pixels."""

    title: str
    ticks: list[tuple[float, str]]
    place: Callable[[float], float]


@dataclass
class Labelled:
    """A point, and where its label stands, all in pixels."""

    name: str
    x: float
    y: float
    label: str = field(default="", kw_only=True)
    label_at: tuple[float, float] = field(default=(0, 0), kw_only=True)
    anchor: str = field(default="start", kw_only=True)


@dataclass
class Obstacles:
    """What labels must keep clear of: rectangles as (left, top, right, bottom)."""

    frame: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def cost(self, box: tuple[float, float, float, float]) -> float:
        """Area that lies on something else, and a lot for what leaves the frame."""
        inside = _overlap(box, self.frame)
        return sum(_overlap(box, each) for each in self.taken) + 20 * (_overlap(box, box) - inside)


def make_axis(
    title: str, values: Sequence[float], start: float, end: float, *, percent: bool, count: int
) -> Axis:
    """An axis that shows some values.

    Args:
        title: as it stands beside the axis.
        values: that lie on it, at least one.
        start: pixel of its low end.
        end: pixel of its high end.
        percent: whether the values are shares.
        count: how many ticks are wanted.
    """
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * (abs(high) or 1)
    low, high = low - margin, high + margin
    if percent:
        low, high = max(low, -0.02), min(high, 1.02)
    ticks = _ticks(low, high, count, 0.001 if percent else 0.01)

    def place(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 1)

    shown = [(place(tick), number(tick, percent=percent)) for tick in ticks]
    if all(text.endswith(".0") for _, text in shown):
        shown = [(at, text.removesuffix(".0")) for at, text in shown]
    return Axis(title, shown, place)


def _ticks(low: float, high: float, count: int, finest: float) -> list[float]:
    """Round values between two ends, as near to `count` of them as there are."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    steps = [power * factor for factor in (1, 2, 5, 10) if power * factor > 0.999 * finest] or [finest]
    several = [
        [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
        for step in steps
    ]
    return min(several, key=lambda ticks: abs(len(ticks) - count))


def place_labels(points: Sequence[Labelled], obstacles: Obstacles, *, longest: int) -> None:
    """Put each label where it hides least.

    Args:
        points: whose labels are placed.
        obstacles: what else is drawn; labels join it.
        longest: characters of a label that are shown.
    """
    obstacles.taken += [(point.x - 6, point.y - 6, point.x + 6, point.y + 6) for point in points]
    for point in points:
        text = point.name if len(point.name) <= longest else f"{point.name[: longest - 1]}…"
        length = _LETTER * len(text)
        places = [
            (anchor, point.x + across, point.y + down)
            for down in (-7, 17, -22, 32, -37, 47)
            for anchor, across in (("start", 8), ("end", -8))
        ]
        boxes = [
            (
                x - (length if anchor == "end" else 0),
                y - _LINE + 3,
                x + (length if anchor == "start" else 0),
                y + 3,
            )
            for anchor, x, y in places
        ]
        costs = [
            obstacles.cost(box) + 2 * abs(y - point.y) for box, (_, _, y) in zip(boxes, places, strict=True)
        ]
        best = costs.index(min(costs))
        obstacles.taken.append(boxes[best])
        point.label = text
        point.anchor, *at = places[best]
        point.label_at = (round(at[0], 1), round(at[1], 1))


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)
