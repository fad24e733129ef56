"""The plane of all trials and their Pareto front; `pareto_plot` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from vlmfix.evaluation.report.scales import Scale
from vlmfix.methods.registry import GREEDY
from vlmfix.tuning.measure import Measure, mean_of
from vlmfix.tuning.objective import COST, Guard

_SHADES = 5
# A trial that lies so many interquartile ranges outside the quartiles is not drawn.
_FAR = 3


@dataclass(frozen=True)
class TrialPoint:
    """A trial.

    Args:
        at: its figures across and up.
        kind: "greedy", "recipe", "complete" or "pruned".
        shade: of its cost, from 0 on.
        keeps: whether it keeps the guards.
    """

    at: tuple[float, float]
    kind: str
    shade: int
    keeps: bool


@dataclass(frozen=True)
class ParetoPlane:
    """Trials in the plane of two metrics, means over the data sets.

    Args:
        x: the metric that lies across, and the part of it that is shown.
        y: the metric that goes up, and the part of it that is shown.
        points: in the order in which they are drawn.
        front: corners of the Pareto front, a staircase; [] where fewer than two trials are on it.
        guard_at: height of the guard on the metric that goes up; None: there is none to show.
        guard: this guard in words.
        legend: shades and the costs that they stand for; []: the cost is an axis.
        outside: number of trials that lie too far from the others to be shown.
    """

    x: tuple[Measure, Scale]
    y: tuple[Measure, Scale]
    points: list[TrialPoint]
    front: list[tuple[float, float]]
    guard_at: float | None
    guard: str
    legend: list[tuple[int, str]]
    outside: int

    @property
    def corner(self) -> str:
        """Which corner is best, such as "upper left"."""
        up, across = (measure.better for measure, _ in (self.y, self.x))
        return f"{'lower' if up == 'lower' else 'upper'} {'right' if across == 'higher' else 'left'}"


def pareto_plane(
    summary: Mapping[str, Any], measures: Mapping[str, Measure], guards: Sequence[Guard]
) -> ParetoPlane | None:
    """Trials by the first metric of the objective and by the one that a guard is about, or the cost.

    Args:
        summary: of the search.
        measures: its metrics by name.
        guards: what must not be given up.

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
    scales = [
        _scale([each[index] for each in complete], [each[index] for each in always]) for index in (1, 2)
    ]
    inside = [
        each
        for each in found
        if not any(own.place(value)[1] for own, value in zip(scales, each[1:], strict=True))
    ]
    shades = _shades([] if COST in (x.name, y.name) else [each[0]["cost"] for each in inside])
    points = []
    for trial, *at in inside:
        kind = "complete" if trial["is_complete"] else "pruned"
        kind = next((name for name, each in special.items() if each and each[0] is trial), kind)
        points.append(TrialPoint((at[0], at[1]), kind, shades.get(trial["cost"], 0), not trial["broken"]))
    drawn = ("pruned", "complete", "recipe", "greedy")
    points.sort(key=lambda point: drawn.index(point.kind))
    return ParetoPlane(
        (x, scales[0]),
        (y, scales[1]),
        points,
        _staircase(_front(complete, x, y)),
        _guard_at(guard, special["greedy"], scales[1]),
        "" if guard is None else str(guard),
        _legend(shades),
        len(found) - len(inside),
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


def _scale(values: Sequence[float], always: Sequence[float]) -> Scale:
    """Without the values far from the others, as one broken method must not flatten the plot."""
    first, _, third = quantiles(values, n=4, method="inclusive")
    reach = _FAR * (third - first)
    near = [value for value in values if first - reach <= value <= third + reach] if reach else values
    return Scale(min(*near, *always), max(*near, *always))


def _front(placed: Sequence[Placed], x: Measure, y: Measure) -> list[tuple[float, float]]:
    """The trials that no other one beats in both metrics, the best across first."""
    signs = [1 if each.better == "higher" else -1 for each in (x, y)]
    ordered = sorted({(a, b) for _, a, b in placed}, key=lambda at: (-signs[0] * at[0], -signs[1] * at[1]))
    front: list[tuple[float, float]] = []
    for at in ordered:
        if not front or signs[1] * at[1] > signs[1] * front[-1][1]:
            front.append(at)
    return front


def _staircase(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(front) < 2:
        return []
    corners = [front[0]]
    for across, up in front[1:]:
        corners += [(across, corners[-1][1]), (across, up)]
    return corners


def _guard_at(guard: Guard | None, greedy: Placed | None, shown: Scale) -> float | None:
    if guard is None or greedy is None:
        return None
    height = guard.bound + (0 if guard.metric == COST else greedy[2])
    low, high = shown.limits
    return height if low <= height <= high else None


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
