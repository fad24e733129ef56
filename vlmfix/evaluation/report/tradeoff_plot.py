"""Geometry of the plot of hallucination against recall; the template of the report draws it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from vlmfix.evaluation.analysis.comparison import Comparison, Figure
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.report.formatting import number, title

_LETTER = 7.0  # width in pixels
_LINE = 14
_MARGINS = (58, 12, 14, 46)  # left, right, top, bottom


@dataclass(frozen=True)
class Axis:
    """One axis: its title, and where values lie on it in pixels."""

    title: str
    ticks: list[tuple[float, str]]
    place: Callable[[float], float]


@dataclass
class Point:
    """One method: its place, the ends of its error bars, and where its label stands, all in pixels."""

    name: str
    x: float
    y: float
    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    text: str
    is_first: bool
    is_inactive: bool
    label: str = ""
    label_at: tuple[float, float] = (0, 0)
    anchor: str = "start"


@dataclass(frozen=True)
class Plot:
    """A plot of two metrics.

    Args:
        points: one a method, the first method first.
        frame: left, top, right and bottom edge of the plotting area.
        corner: which corner is best, such as "upper left".
        x_name: of the metric that lies across.
        y_name: of the metric that goes up.
    """

    width: int
    height: int
    x: Axis
    y: Axis
    points: list[Point]
    frame: tuple[float, float, float, float]
    corner: str
    x_name: str
    y_name: str


@dataclass
class _Page:
    """What labels must keep clear of: rectangles as (left, top, right, bottom)."""

    frame: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def cost(self, box: tuple[float, float, float, float]) -> float:
        """Area that lies on something else, and a lot for what leaves the frame."""
        inside = _overlap(box, self.frame)
        return sum(_overlap(box, each) for each in self.taken) + 20 * (_overlap(box, box) - inside)


def tradeoff_plot(comparison: Comparison, *, width: int, height: int) -> Plot | None:
    """Methods in the plane of the two metrics that the task names.

    Args:
        comparison: of one task.
        width: of the picture in pixels.
        height: of the picture in pixels.

    Returns:
        None if the task names no metrics, or fewer than two methods have them.
    """
    names = comparison.rows[0].outcome.tradeoff
    if names is None:
        return None
    group = comparison.groups[0] if comparison.groups else ""
    found = [
        (row, across, up)
        for row in comparison.rows
        if (across := row.figure(names[0], group)) and (up := row.figure(names[1], group))
        if across.is_defined and up.is_defined
    ]
    if len(found) < 2:
        return None
    left, right, top, bottom = _MARGINS
    frame = (left, top, width - right, height - bottom)
    x = _axis([across for _, across, _ in found], frame[0], frame[2], count=max(4, width // 110))
    y = _axis([up for _, _, up in found], frame[3], frame[1], count=max(4, height // 80))
    points = [
        Point(
            row.outcome.method,
            x.place(across.estimate.value),
            y.place(up.estimate.value),
            _ends(across.estimate, x),
            _ends(up.estimate, y),
            f"{names[0]} {_shown(across)}, {names[1]} {_shown(up)}",
            is_first=row is comparison.rows[0],
            is_inactive=row.outcome.inactive,
        )
        for row, across, up in found
    ]
    _label(points, _Page(frame), longest=width // 20)
    _, across, up = found[0]
    corner = f"{'lower' if up.metric.better == 'lower' else 'upper'} "
    corner += "right" if across.metric.better == "higher" else "left"
    return Plot(width, height, x, y, points, frame, corner, *names)


def _axis(figures: list[Figure], start: float, end: float, *, count: int) -> Axis:
    metric = figures[0].metric
    ends = [end for each in figures for end in _interval(each.estimate)]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 0.05 * (abs(high) or 1)
    low, high = low - margin, high + margin
    if metric.percent:
        low, high = max(low, -0.02), min(high, 1.02)
    ticks = _ticks(low, high, count, 0.001 if metric.percent else 0.01)

    def place(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 1)

    shown = [(place(tick), number(tick, percent=metric.percent)) for tick in ticks]
    if all(text.endswith(".0") for _, text in shown):
        shown = [(at, text.removesuffix(".0")) for at, text in shown]
    name = f"{title(metric)} ({metric.better} is better)" if metric.better else title(metric)
    return Axis(name, shown, place)


def _ticks(low: float, high: float, count: int, finest: float) -> list[float]:
    """Round values between two ends, as near to `count` of them as there are."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    steps = [power * factor for factor in (1, 2, 5, 10) if power * factor > 0.999 * finest] or [finest]
    several = [
        [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
        for step in steps
    ]
    return min(several, key=lambda ticks: abs(len(ticks) - count))


def _interval(estimate: Estimate) -> tuple[float, float]:
    if estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _ends(estimate: Estimate, axis: Axis) -> tuple[float, float]:
    low, high = _interval(estimate)
    return axis.place(low), axis.place(high)


def _shown(figure: Figure) -> str:
    return number(figure.estimate.value, percent=figure.metric.percent)


def _label(points: list[Point], page: _Page, *, longest: int) -> None:
    """Put each label where it hides least."""
    page.taken += [(point.x - 6, point.y - 6, point.x + 6, point.y + 6) for point in points]
    page.taken += [(min(p.x_ends), p.y - 1, max(p.x_ends), p.y + 1) for p in points]
    page.taken += [(p.x - 1, min(p.y_ends), p.x + 1, max(p.y_ends)) for p in points]
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
        costs = [page.cost(box) + 2 * abs(y - point.y) for box, (_, _, y) in zip(boxes, places, strict=True)]
        best = costs.index(min(costs))
        page.taken.append(boxes[best])
        point.label = text
        point.anchor, *at = places[best]
        point.label_at = (round(at[0], 1), round(at[1], 1))


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)
