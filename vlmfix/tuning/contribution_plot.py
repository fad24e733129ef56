"""Plot of what each part of a recipe contributes."""

from __future__ import annotations

from vlmfix.evaluation.report.page_style import typeset
from vlmfix.evaluation.report.plots import ACCENT, INK, SOFT, Plot, new_figure, shortened, style
from vlmfix.tuning.contributions import WHOLE, Contributions

_ROW = 0.17  # height in inches


def contribution_plot(found: Contributions) -> Plot:
    """Draw one bar for each part and data set."""
    measure = found.measure
    factor = 100 if measure.percent else 1
    labels: list[tuple[str, bool]] = []
    bars: list[tuple[int, float, str]] = []
    for part, gains in found.gains.items():
        labels.append((shortened(part), True))
        for data, gain in gains.items():
            labels.append((shortened(data, 20), False))
            colour = INK if part == WHOLE else ACCENT if gain >= 0 else SOFT
            bars.append((len(labels) - 1, gain, colour))
    with style():
        figure, axes = new_figure(0.3 + _ROW * len(labels))
        axes.set(ylim=(len(labels) - 0.4, -0.6))
        axes.set_yticks(range(len(labels)), [label for label, _ in labels])
        for tick, (_, is_part) in zip(axes.get_yticklabels(), labels, strict=True):
            tick.set(color=INK if is_part else SOFT, fontweight="bold" if is_part else "normal")
        for row, gain, colour in bars:
            axes.barh(row, factor * gain, height=0.6, color=colour)
            axes.annotate(
                typeset(measure.text(gain, signed=True)),
                (factor * gain, row),
                (-3 if gain < 0 else 3, 0),
                textcoords="offset points",
                horizontalalignment="right" if gain < 0 else "left",
                verticalalignment="center",
            )
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.margins(x=0.18)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelbottom=False)
    unit = " (differences in points)" if measure.percent else ""
    caption = (
        f"{measure.head}{unit}: by how much the recipe is better than greedy decoding, then by how much it "
        "is better than what is left when a part is taken out. A bar to the left means that the recipe is "
        "better without the part. These are differences of single values on the test images; rows of the "
        "table above have intervals."
    )
    words = (
        f"{part}: {', '.join(f'{measure.text(gain, signed=True)} on {data}' for data, gain in gains.items())}"
        for part, gains in found.gains.items()
    )
    return Plot(f"parts-{measure.name}", caption, "; ".join(words), figure)
