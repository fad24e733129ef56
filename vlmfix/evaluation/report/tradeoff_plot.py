"""Plot of hallucination against recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from vlmfix.evaluation.analysis.comparison import Comparison, Row
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.report.formatting import number, title
from vlmfix.evaluation.report.labels import place_labels
from vlmfix.evaluation.report.plots import ACCENT, INK, PAPER, SOFT, Plot, new_figure, shortened, style
from vlmfix.evaluation.report.selection import Selection, is_baseline

Interval = tuple[float, float, float]
"""Low end, value and high end."""
_FAR = 3.0
"""A point is far from the others beyond so many times the span of the nearer half of them."""
_EDGE = 0.06
"""Share of an axis between its ends and the points."""
ARROWS = (
    ("\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"),
    ("\N{DOWNWARDS ARROW}", "\N{UPWARDS ARROW}"),
)
"""Beyond the low and the high end of each axis."""


@dataclass(frozen=True)
class Scale:
    """The part of an axis that has points on it."""

    low: float
    high: float

    @property
    def limits(self) -> tuple[float, float]:
        """Both ends with room around the points."""
        room = _EDGE * (self.high - self.low) or 1.0
        return self.low - room, self.high + room

    def place(self, value: float) -> tuple[float, int]:
        """Where a value is drawn, and on which side it is beyond the edge: -1, 0 or 1."""
        if value < self.low:
            return self.low, -1
        return (self.high, 1) if value > self.high else (value, 0)


def scale(intervals: Sequence[Interval]) -> Scale:
    """The part of an axis that shows the points, without those so far away that they squeeze the others.

    Args:
        intervals: of the points; of those without a bar, three equal values.
    """
    ordered = sorted(intervals, key=lambda each: each[1])
    most = len(ordered) // 2 + 1
    runs = [ordered[start : start + most] for start in range(len(ordered) - most + 1)]
    near = min(runs, key=lambda run: run[-1][1] - run[0][1])
    reach = _FAR * max(near[-1][1] - near[0][1], median(high - low for low, _, high in ordered))
    first, last = near[0][1] - reach, near[-1][1] + reach
    kept = [each for each in ordered if first <= each[1] <= last]
    return Scale(min(low for low, _, _ in kept), max(high for _, _, high in kept))


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
    x, y = (
        scale(
            [
                _ends(figure) if row in selection.shown else (_ends(figure)[1],) * 3
                for row, figure in ((each[0], each[index]) for each in found)
            ]
        )
        for index in (1, 2)
    )
    points = [_point(comparison, selection, each, x, y) for each in found]
    with style():
        figure, axes = new_figure(3.1)
        axes.set(xlim=x.limits, ylim=y.limits, xlabel=_axis_title(across), ylabel=_axis_title(up))
        axes.locator_params(nbins=6)
        for point in points:
            _draw(axes, point)
        _label(figure, axes, [point for point in points if point.text])
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
        zorder=3,
    )


def _label(figure: Any, axes: Any, points: Sequence[_Point]) -> None:
    """Put the labels where they hide least."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the frame stays where it is now
    ground = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.3}
    texts = [axes.text(0, 0, point.text, fontsize=7, zorder=4, bbox=ground) for point in points]
    extents = [text.get_window_extent() for text in texts]
    here = axes.transData.transform
    at = [tuple(here(point.at)) for point in points]
    lines = [
        zip(here((across[0], up[0])), here((across[1], up[1])), strict=True)
        for p in points
        for across, up in p.bars
    ]
    obstacles = [(left - 1, low - 1, right + 1, high + 1) for (left, right), (low, high) in lines]
    sizes = [(extent.width, extent.height) for extent in extents]
    for text, place, point in zip(
        texts, place_labels(at, sizes, axes.bbox.extents, obstacles), points, strict=True
    ):
        left, low, right, high = place.box
        text.set(position=axes.transData.inverted().transform((left, low)), verticalalignment="bottom")
        if place.is_far:
            x, y = here(point.at)
            end = axes.transData.inverted().transform((min(max(x, left), right), low if low > y else high))
            axes.plot(*zip(point.at, end, strict=True), color=SOFT, linewidth=0.5, zorder=1)


def _ends(figure: Figure) -> Interval:
    """The interval as the axis shows it: in percent for shares."""
    estimate, factor = figure.estimate, 100 if figure.metric.percent else 1
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return factor * low, factor * estimate.value, factor * high


def _axis_title(figure: Figure) -> str:
    metric = figure.metric
    return f"{title(metric)} ({metric.better} is better)" if metric.better else title(metric)


def _shown(figure: Figure) -> str:
    return number(figure.estimate.value, percent=figure.metric.percent)
