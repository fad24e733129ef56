"""Geometry of the plot of all trials and their Pareto front; the template of the page draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Any

from vlmfix.evaluation.report.axes import Axis, Labelled, Obstacles, make_axis, place_labels
from vlmfix.evaluation.report.formatting import number
from vlmfix.methods.registry import GREEDY
from vlmfix.tuning.objective import COST, Guard

_SHADES = 5
_MARGINS = (58, 14, 14, 46)  # left, right, top, bottom
# A trial that lies so many interquartile ranges outside the quartiles is not drawn.
_FAR = 3


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


@dataclass
class TrialPoint(Labelled):
    """A trial in the plot.

    Args:
        kind: "greedy", "recipe", "complete" or "pruned".
        shade: of its cost, from 0 on.
        keeps: whether it keeps the guards.
        text: its figures in words.
    """

    kind: str
    shade: int
    keeps: bool
    text: str


@dataclass(frozen=True)
class ParetoPlot:
    """Trials in the plane of two metrics, means over the data sets.

    Args:
        frame: left, top, right and bottom edge of the plotting area.
        points: in the order in which they are drawn.
        front: path of the Pareto front, a staircase; "" where fewer than two trials are on it.
        guard_at: height of the guard on the metric that goes up; None: there is none to show.
        guard: this guard in words.
        legend: shades and the costs that they stand for; []: the cost is an axis.
        outside: number of trials that lie too far from the others to be shown.
        corner: which corner is best, such as "upper left".
    """

    width: int
    height: int
    x: Axis
    y: Axis
    x_name: str
    y_name: str
    frame: tuple[float, float, float, float]
    points: list[TrialPoint]
    front: str
    guard_at: float | None
    guard: str
    legend: list[tuple[int, str]]
    outside: int
    corner: str

    @property
    def has_key(self) -> bool:
        """Whether its colours and marks need a key."""
        return bool(self.legend) or any(point.kind == "pruned" or not point.keeps for point in self.points)


def mean_of(figures: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """The mean of a metric over the data sets; None where one lacks it."""
    values = [each.get(name) for each in figures.values()]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def pareto_plot(
    summary: Mapping[str, Any],
    measures: Mapping[str, Measure],
    guards: Sequence[Guard],
    *,
    width: int,
    height: int,
) -> ParetoPlot | None:
    """Trials by the first metric of the objective and by the one that a guard is about, or the cost.

    Args:
        summary: of the search.
        measures: its metrics by name.
        guards: what must not be given up.
        width: of the picture in pixels.
        height: of the picture in pixels.

    Returns:
        None: fewer than two trials saw the whole search set.
    """
    x, y, guard = _plane(summary["objective"], measures, guards)
    found = [
        (trial, across, up)
        for trial in summary["trials"]
        if (across := mean_of(trial["figures"], x.name)) is not None
        if (up := mean_of(trial["figures"], y.name)) is not None
    ]
    complete = [each for each in found if each[0]["is_complete"]]
    if len(complete) < 2:
        return None
    special = {
        kind: next((each for each in complete if each[0]["candidate"] == label), None)
        for kind, label in (("greedy", GREEDY), ("recipe", summary["chosen"]))
    }
    always = [each for each in special.values() if each is not None]
    left, right, top, bottom = _MARGINS
    frame = (left, top, width - right, height - bottom)
    x_values = _near([each[1] for each in complete], [each[1] for each in always])
    y_values = _near([each[2] for each in complete], [each[2] for each in always])
    x_axis = make_axis(_title(x), x_values, frame[0], frame[2], percent=x.percent, count=max(4, width // 110))
    y_axis = make_axis(_title(y), y_values, frame[3], frame[1], percent=y.percent, count=max(4, height // 80))
    inside = [each for each in found if _is_inside(x_axis.place(each[1]), y_axis.place(each[2]), frame)]
    shades = _shades([] if COST in (x.name, y.name) else [each[0]["cost"] for each in inside])
    points = []
    for trial, *at in inside:
        kind = "complete" if trial["is_complete"] else "pruned"
        kind = next((name for name, each in special.items() if each and each[0] is trial), kind)
        points.append(
            TrialPoint(
                kind if kind in special else trial["candidate"],
                x_axis.place(at[0]),
                y_axis.place(at[1]),
                kind,
                shades.get(trial["cost"], 0),
                not trial["broken"],
                f"trial {trial['number'] + 1}, {trial['candidate']}: {x.name} {x.text(at[0])}, "
                f"{y.name} {y.text(at[1])}, cost {trial['cost']:.3g}, {trial['images']} images",
            )
        )
    drawn = ("pruned", "complete", "recipe", "greedy")
    points.sort(key=lambda point: drawn.index(point.kind))
    obstacles = Obstacles(frame)
    obstacles.taken += [(p.x - 5, p.y - 5, p.x + 5, p.y + 5) for p in points if p.kind == "complete"]
    place_labels([p for p in points if p.kind in special], obstacles, longest=width // 20)
    return ParetoPlot(
        width,
        height,
        x_axis,
        y_axis,
        x.name,
        y.name,
        frame,
        points,
        _staircase([(x_axis.place(a), y_axis.place(b)) for a, b in _front(complete, x, y)]),
        _guard_at(guard, special["greedy"], y_axis, frame),
        "" if guard is None else str(guard),
        _legend(shades),
        len(found) - len(inside),
        f"{'lower' if y.better == 'lower' else 'upper'} {'right' if x.better == 'higher' else 'left'}",
    )


Placed = tuple[Mapping[str, Any], float, float]


def _plane(
    objective: Sequence[str], measures: Mapping[str, Measure], guards: Sequence[Guard]
) -> tuple[Measure, Measure, Guard | None]:
    """The metric that lies across, the one that goes up, and the guard on it."""
    x = objective[0]
    guard = next((each for each in guards if each.metric not in (x, COST)), None)
    if guard is not None:
        better = "higher" if guard.is_floor else "lower"
        return measures[x], Measure(guard.metric, better, measures[guard.metric].percent), guard
    second = next((each for each in objective[1:] if each != COST), None)
    others = (each for each in measures if each != COST and measures[each].better)
    y = second or (COST if x != COST else next(others))
    return measures[x], measures[y], next((each for each in guards if each.metric == y), None)


def _title(measure: Measure) -> str:
    return f"{measure.head} ({measure.better} is better)"


def _near(values: Sequence[float], always: Sequence[float]) -> list[float]:
    """The values without those far from the others, as one broken method must not flatten the plot."""
    first, _, third = quantiles(values, n=4, method="inclusive")
    reach = _FAR * (third - first)
    near = [value for value in values if first - reach <= value <= third + reach]
    return [*(near if reach else values), *always]


def _is_inside(x: float, y: float, frame: tuple[float, float, float, float]) -> bool:
    return frame[0] <= x <= frame[2] and frame[1] <= y <= frame[3]


def _front(placed: Sequence[Placed], x: Measure, y: Measure) -> list[tuple[float, float]]:
    """The trials that no other one beats in both metrics, the best across first."""
    signs = [1 if each.better == "higher" else -1 for each in (x, y)]
    ordered = sorted({(a, b) for _, a, b in placed}, key=lambda at: (-signs[0] * at[0], -signs[1] * at[1]))
    front: list[tuple[float, float]] = []
    for at in ordered:
        if not front or signs[1] * at[1] > signs[1] * front[-1][1]:
            front.append(at)
    return front


def _staircase(front: Sequence[tuple[float, float]]) -> str:
    if len(front) < 2:
        return ""
    (x, y), *others = front
    return f"M{x} {y}" + "".join(f"H{across}V{up}" for across, up in others)


def _guard_at(
    guard: Guard | None, greedy: Placed | None, axis: Axis, frame: tuple[float, float, float, float]
) -> float | None:
    if guard is None or greedy is None:
        return None
    height = axis.place(guard.bound + (0 if guard.metric == COST else greedy[2]))
    return height if frame[1] <= height <= frame[3] else None


def _shades(costs: Sequence[float]) -> dict[float, int]:
    """A shade for each cost; where there are more costs than shades, neighbours share one."""
    distinct = sorted(set(costs))
    if len(distinct) <= 1:
        return dict.fromkeys(distinct, 0)
    if len(distinct) <= _SHADES:
        return {cost: round(at * (_SHADES - 1) / (len(distinct) - 1)) for at, cost in enumerate(distinct)}
    return {cost: at * _SHADES // len(distinct) for at, cost in enumerate(distinct)}


def _legend(shades: Mapping[float, int]) -> list[tuple[int, str]]:
    found = []
    for shade in sorted(set(shades.values())):
        costs = [cost for cost, own in shades.items() if own == shade]
        low, high = f"{min(costs):.3g}", f"{max(costs):.3g}"
        found.append((shade, low if low == high else f"{low} to {high}"))
    return found
