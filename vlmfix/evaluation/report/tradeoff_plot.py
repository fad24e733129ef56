"""Plot of hallucination against recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.report.formatting import number, title
from vlmfix.evaluation.report.plots import (
    ACCENT,
    INK,
    PAPER,
    SOFT,
    Plot,
    label_points,
    new_figure,
    shortened,
    style,
)
from vlmfix.evaluation.report.scales import Interval, Scale, scale
from vlmfix.evaluation.report.selection import Selection, is_baseline

ARROWS = (
    ("\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"),
    ("\N{DOWNWARDS ARROW}", "\N{UPWARDS ARROW}"),
)
"""Beyond the low and the high end of each axis."""


def tradeoff_plot(comparison: Comparison, selection: Selection, name: str) -> Plot | None:
    """Methods in the plane of the two metrics that the task names.

    Args:
        comparison: of one task.
        selection: of its methods; those of the first table have labels and intervals.
        name: of the files.

    Returns:
        None: the task names no metrics, or fewer than two methods have them.
    """
    names, main = comparison.rows[0].outcome.tradeoff, comparison.main
    if names is None or main is None:
        return None
    found = [
        (row, across, up)
        for row in selection.all
        if (across := row.figure(names[0], main.group)) and (up := row.figure(names[1], main.group))
        if across.is_defined and up.is_defined
    ]
    if len(found) < 2:
        return None
    _, across, up = found[0]
    x = scale([_drawn_ends(across, row in selection.shown) for row, across, _ in found])
    y = scale([_drawn_ends(up, row in selection.shown) for row, _, up in found])
    points = [_point(comparison, selection, each, x, y) for each in found]
    with style():
        figure, axes = new_figure(3.1)
        axes.set(xlim=x.limits, ylim=y.limits, xlabel=_axis_title(across), ylabel=_axis_title(up))
        axes.locator_params(nbins=6)
        for point in points:
            _draw(axes, point)
        labels = [(point.text, point.at) for point in points if point.text]
        label_points(figure, axes, labels, [bar for point in points for bar in point.bars])
    corner = f"{'lower' if up.metric.better == 'lower' else 'upper'} "
    corner += "right" if across.metric.better == "higher" else "left"
    caption = (
        f"{comparison.task}: {names[1]} against {names[0]}; the {corner} is best. The square is "
        f"{comparison.rows[0].outcome.method}, open circles are baselines; bars are the 95 % intervals of "
        "each method by itself."
    )
    if any(point.edge != point.at for point in points):
        caption += " Arrows lead to methods beyond the edge, with their values."
    if len(points) > sum(bool(point.text) for point in points):
        caption += " Small dots are the further methods."
    words = (f"{row.outcome.method}: {names[0]} {_shown(a)}, {names[1]} {_shown(b)}" for row, a, b in found)
    return Plot(name, caption, "; ".join(words), figure)


@dataclass(frozen=True)
class _Point:
    """A method as it is drawn.

    Args:
        text: its label; "" for none.
        at: its place, near the edge where it is beyond.
        edge: the same, on the edge where it is beyond.
        bars: its intervals, each as a line of two values across and two up.
        kind: "reference", "baseline" or "tested".
        is_faint: whether the method never acted.
    """

    text: str
    at: tuple[float, float]
    edge: tuple[float, float]
    bars: list[tuple[tuple[float, float], tuple[float, float]]]
    kind: str
    is_faint: bool

    @property
    def colour(self) -> str:
        """Of its mark and bars."""
        if self.is_faint or self.kind == "baseline":
            return SOFT
        return INK if self.kind == "reference" else ACCENT


def _point(
    comparison: Comparison, selection: Selection, found: tuple[Row, Figure, Figure], x: Scale, y: Scale
) -> _Point:
    row, across, up = found
    places = [x.place(_ends(across)[1]), y.place(_ends(up)[1])]
    edge = [at for at, _ in places]
    text = shortened(row.outcome.method) if row in selection.shown or any(side for _, side in places) else ""
    for index, (figure, arrows) in enumerate(zip((across, up), ARROWS, strict=True)):
        side = places[index][1]
        if side:
            edge[index] = (x, y)[index].limits[side > 0]
            text += f" {arrows[side > 0]} {_shown(figure)}"
    (at_x, beyond_x), (at_y, beyond_y) = places
    (left, _, right), (low, _, high) = _ends(across), _ends(up)
    bars = [] if beyond_x or not text else [((left, right), (at_y, at_y))]
    bars += [] if beyond_y or not text else [((at_x, at_x), (low, high))]
    kind = "reference" if row is comparison.rows[0] else "baseline" if is_baseline(row) else "tested"
    return _Point(text, (at_x, at_y), (edge[0], edge[1]), bars, kind, row.outcome.inactive)


def _draw(axes: Any, point: _Point) -> None:
    for across, up in point.bars:
        axes.plot(across, up, color=point.colour, linewidth=0.8, alpha=0.4, zorder=2)
    if point.edge != point.at:
        arrow = {"arrowstyle": "->", "color": point.colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", point.edge, point.at, arrowprops=arrow)
    if not point.text:
        axes.plot(*point.at, ".", color=SOFT, markersize=3)
        return
    axes.plot(
        *point.at,
        "s" if point.kind == "reference" else "o",
        color=point.colour,
        markerfacecolor=PAPER if point.kind == "baseline" else point.colour,
        markersize=4.5,
        zorder=3.5 if point.kind == "reference" else 3,
    )


def _ends(figure: Figure) -> Interval:
    """The interval as the axis shows it: in percent for shares."""
    estimate, factor = figure.estimate, 100 if figure.metric.percent else 1
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return factor * low, factor * estimate.value, factor * high


def _drawn_ends(figure: Figure, has_bar: bool) -> Interval:
    low, value, high = _ends(figure)
    return (low, value, high) if has_bar else (value, value, value)


def _axis_title(figure: Figure) -> str:
    metric = figure.metric
    return f"{title(metric)} ({metric.better} is better)" if metric.better else title(metric)


def _shown(figure: Figure) -> str:
    return number(figure.estimate.value, percent=figure.metric.percent)
