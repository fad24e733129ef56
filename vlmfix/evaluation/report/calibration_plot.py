"""Plot of how far the claimed probabilities of yes agree with what is right."""

from __future__ import annotations

import math

from vlmfix.evaluation.analysis.comparison import Comparison
from vlmfix.evaluation.report.formatting import number
from vlmfix.evaluation.report.plots import INK, MARKERS, SERIES, SOFT, Plot, new_figure, shortened, style
from vlmfix.evaluation.report.selection import Selection


def calibration_plot(comparison: Comparison, selection: Selection, name: str) -> Plot | None:
    """A line for each method: the share of yes that is right, by the probability of yes that is claimed.

    Args:
        comparison: of one task.
        selection: of its methods; the reference and the best tested ones have a line.
        name: of the files.

    Returns:
        None: no method has margins.
    """
    first = comparison.rows[0]
    rows = [row for row in selection.shown if row is first or row in comparison.others]
    lines = [(row.outcome.method, row.outcome.calibration) for row in rows]
    drawn = [(method, each) for method, each in lines if each is not None][: len(SERIES) + 1]
    if not drawn:
        return None
    with style():
        figure, axes = new_figure(3.1 + 0.15 * math.ceil(len(drawn) / 2))
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle=(0, (3, 3)), linewidth=0.8)
        for index, (method, each) in enumerate(drawn):
            look = {"color": INK, "marker": "s"}
            if method != first.outcome.method:
                at = index - (drawn[0][0] == first.outcome.method)
                look = {"color": SERIES[at % len(SERIES)], "marker": MARKERS[at % len(MARKERS)]}
            axes.plot(
                each.claimed,
                each.right,
                markersize=3.2,
                linewidth=0.9,
                label=f"{shortened(method)} ({number(each.error, percent=True)} %)",
                **look,
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set(xlabel="claimed probability of yes", ylabel="share of yes that is right")
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_yticks(ticks, ["0", "0.25", "0.5", "0.75", "1"])
        figure.legend(loc="outside lower center", ncols=2, fontsize=7, handlelength=1.6)
    bins = max(len(each.counts) for _, each in drawn)
    caption = (
        f"{comparison.task}: calibration of yes, in {bins} bins of equal count; on the dashed line what is "
        "claimed is right. In brackets the expected calibration error."
    )
    words = (f"{method}: error {number(each.error, percent=True)} %" for method, each in drawn)
    return Plot(name, caption, "; ".join(words), figure)
