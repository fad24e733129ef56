"""Geometry of the plot of hallucination against recall; the template of the report draws it."""

from __future__ import annotations

from dataclasses import dataclass

from vlmfix.evaluation.analysis.comparison import Comparison
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.report.axes import Axis, Labelled, Obstacles, make_axis, place_labels
from vlmfix.evaluation.report.formatting import number, title

_MARGINS = (58, 12, 14, 46)  # left, right, top, bottom


@dataclass
class Point(Labelled):
    """One method, and the ends of its error bars in pixels."""

    x_ends: tuple[float, float]
    y_ends: tuple[float, float]
    text: str
    is_first: bool
    is_inactive: bool


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
    obstacles = Obstacles(frame)
    obstacles.taken += [(min(p.x_ends), p.y - 1, max(p.x_ends), p.y + 1) for p in points]
    obstacles.taken += [(p.x - 1, min(p.y_ends), p.x + 1, max(p.y_ends)) for p in points]
    place_labels(points, obstacles, longest=width // 20)
    _, across, up = found[0]
    corner = f"{'lower' if up.metric.better == 'lower' else 'upper'} "
    corner += "right" if across.metric.better == "higher" else "left"
    return Plot(width, height, x, y, points, frame, corner, *names)


def _axis(figures: list[Figure], start: float, end: float, *, count: int) -> Axis:
    metric = figures[0].metric
    ends = [end for each in figures for end in _interval(each.estimate)]
    name = f"{title(metric)} ({metric.better} is better)" if metric.better else title(metric)
    return make_axis(name, ends, start, end, percent=metric.percent, count=count)


def _interval(estimate: Estimate) -> tuple[float, float]:
    if estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _ends(estimate: Estimate, axis: Axis) -> tuple[float, float]:
    low, high = _interval(estimate)
    return axis.place(low), axis.place(high)


def _shown(figure: Figure) -> str:
    return number(figure.estimate.value, percent=figure.metric.percent)
