"""Plot of all trials and their Pareto front."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D

from vlmfix.evaluation.report.plots import INK, PAPER, SHADES, Plot, label_points, new_figure, style
from vlmfix.tuning.measure import Measure
from vlmfix.tuning.pareto import ParetoPlane, TrialPoint

_MARKS = {"greedy": ("s", 5.5), "recipe": ("D", 6.0), "complete": ("o", 4.5), "pruned": ("o", 3.0)}


def pareto_plot(plane: ParetoPlane) -> Plot:
    """Draw the trials."""
    (x, x_scale), (y, y_scale) = plane.x, plane.y
    legend = _legend(plane)
    with style():
        figure, axes = new_figure(2.9 + 0.15 * ((len(legend) + 2) // 3))
        across, up = (100 if measure.percent else 1 for measure in (x, y))

        def place(at: tuple[float, float]) -> tuple[float, float]:
            return at[0] * across, at[1] * up

        axes.set(xlabel=_title(x), xlim=[across * end for end in x_scale.limits])
        axes.set(ylabel=_title(y), ylim=[up * end for end in y_scale.limits])
        axes.locator_params(nbins=6)
        corners = list(map(place, plane.front))
        if plane.guard_at is not None:
            axes.axhline(up * plane.guard_at, color=INK, linestyle=(0, (1, 3)), linewidth=0.9)
        if plane.front:
            axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.8, alpha=0.7)
        for order, point in enumerate(plane.points):
            axes.plot(*place(point.at), **_look(point), zorder=3 + order / len(plane.points))
        if legend:
            figure.legend(handles=legend, loc="outside lower center", ncols=3, fontsize=7, handletextpad=0.2)
        special = [point for point in plane.points if point.kind in ("greedy", "recipe")]
        lines = [((a[0], b[0]), (a[1], b[1])) for a, b in pairwise(corners)]
        label_points(figure, axes, [(point.kind, place(point.at)) for point in special], lines)
    caption = (
        f"Trials on the images of the search: {y.name} against {x.name}, means over the data sets; the "
        f"{plane.corner} is best. The square is greedy decoding"
    )
    caption += ", the diamond the recipe." if any(each.kind == "recipe" for each in plane.points) else "."
    if plane.front:
        caption += " The line joins the trials that no other one beats in both."
    if plane.guard_at is not None:
        caption += f" Dots: the guard {plane.guard}."
    if plane.outside:
        caption += f" Trials outside the picture: {plane.outside}."
    caption += (
        " The search looked for the best of these values, so that they look better than they are; what "
        "counts is the test."
    )
    words = [f"{len(plane.points)} trials"]
    for point in special:
        words.append(f"{point.kind}: {x.name} {x.text(point.at[0])}, {y.name} {y.text(point.at[1])}")
    return Plot("pareto", caption, "; ".join(words), figure)


def _look(point: TrialPoint) -> dict[str, Any]:
    marker, size = _MARKS[point.kind]
    colour = SHADES[point.shade]
    return {
        "marker": marker,
        "markersize": size,
        "linestyle": "",
        "markerfacecolor": colour if point.keeps else PAPER,
        "markeredgecolor": PAPER if point.keeps else colour,
        "markeredgewidth": 0.5 if point.keeps else 1.0,
        "alpha": 0.4 if point.kind == "pruned" else 1.0,
    }


def _legend(plane: ParetoPlane) -> list[Line2D]:
    """What colours and marks mean."""
    kinds = {f"cost {text}": TrialPoint((0, 0), "complete", shade, True) for shade, text in plane.legend}
    if not all(point.keeps for point in plane.points):
        kinds["breaks a guard"] = TrialPoint((0, 0), "complete", 0, False)
    if any(point.kind == "pruned" for point in plane.points):
        kinds["given up early"] = TrialPoint((0, 0), "pruned", 0, True)
    return [Line2D([], [], label=label, **_look(point)) for label, point in kinds.items()]


def _title(measure: Measure) -> str:
    return f"{measure.head} ({measure.better} is better)"
