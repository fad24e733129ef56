"""Figures of an explanation, for papers and for its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlmfix.evaluation.report.plots import INK, SERIES, SOFT, WIDTH, Plot, new_figure, shortened, style
from vlmfix.explanation.arrays import ExplanationArrays
from vlmfix.explanation.formulas import FIRST, GROUPS, IMAGE, SINKS
from vlmfix.explanation.knockout import RULES

_TOKENS = 80  # rows of a figure over the answer, at most
_GROUP_COLOURS = (SOFT, SERIES[3], SERIES[0], SERIES[5], SERIES[4], SERIES[2])


def draw(explanation: ExplanationArrays, kind: str, word: int) -> Plot:
    """A figure.

    Args:
        explanation: what is shown.
        kind: one of `KINDS`.
        word: number of the word that it is of, where it is of one.

    Raises:
        ValueError: there is no such figure, or nothing to show in it.
    """
    if kind not in _DRAWN:
        raise ValueError(f"kind is {kind!r}; use {', '.join(KINDS)}")
    with style():
        return _DRAWN[kind](explanation, word)


def _maps(explanation: ExplanationArrays, word: int) -> Plot:
    """All maps of one word over the picture."""
    figure, panels = _panels(WIDTH / len(explanation.maps) + 0.2, 1, len(explanation.maps))
    name = explanation.plain.words[word].text
    for each, own in zip(explanation.maps, panels, strict=True):
        own.imshow(np.asarray(explanation.picture))
        own.imshow(explanation.saliency(each, word), cmap="viridis", alpha=0.6)
        own.set_title(each, fontsize=7.5)
        own.axis("off")
    return Plot("maps", f"Maps of “{name}”.", f"Maps: {', '.join(explanation.maps)}.", figure)


def _flow(explanation: ExplanationArrays, word: int) -> Plot:
    """Shares of attention word by word."""
    shares, words = explanation.plain.shares, explanation.plain.words[:_TOKENS]
    assert shares is not None
    own = np.array([shares[list(each.tokens)].mean(axis=0) for each in words])
    figure, axes = new_figure(0.75 + 0.145 * len(words))
    left = np.zeros(len(words))
    for group, label in enumerate(GROUPS):
        colour = _GROUP_COLOURS[group]
        axes.barh(range(len(words)), own[:, group], left=left, color=colour, label=label, height=0.82)
        left += own[:, group]
    axes.set_yticks(range(len(words)), [shortened(each.text, 14) for each in words])
    axes.set(xlim=(0, 1), ylim=(len(words) - 0.4, -0.6), xlabel="share of attention")
    axes.grid(False)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=7, borderaxespad=0.2)
    image = own[:, IMAGE] + own[:, SINKS]
    described = ", ".join(f"{each.text} {share:.2f}" for each, share in zip(words, image, strict=True))
    first, last = explanation.band[0], explanation.band[-1]
    where = f"layers {first} to {last}" if last > first else f"layer {first}"
    return Plot(
        "flow",
        f"Where the rows that write each word look, from top to bottom; mean of all heads of {where}.",
        f"Share of attention on the image by word: {described}.",
        figure,
    )


def _heads(explanation: ExplanationArrays, word: int) -> Plot:
    """Layers by heads: attention on the first token, the image, the sinks in it, and divergence."""
    sums, layers = explanation.plain.by_head, explanation.layers
    assert sums is not None
    shown = {
        "on the first token": sums[..., FIRST],
        "on the image": sums[..., IMAGE] + sums[..., SINKS],
        "on sinks in the image": sums[..., SINKS],
    }
    if explanation.divergence is not None:
        shown["moved by the image (VHD)"] = explanation.divergence[list(layers)]
    figure, panels = _panels(3.2, 2, 2)
    for axes in panels[len(shown) :]:
        axes.axis("off")
    for axes, (title, values) in zip(panels, shown.items(), strict=False):
        image = axes.imshow(values, cmap="viridis", aspect="auto", vmin=0, interpolation="nearest")
        axes.set_title(title, fontsize=7.5)
        axes.grid(False)
        places = range(0, len(values), max(1, len(values) // 8))
        axes.set_yticks(places, [layers[place] for place in places])
        axes.set(xlabel="head", ylabel="layer")
        bar = figure.colorbar(image, ax=axes)
        bar.ax.grid(False)
        bar.outline.set_visible(False)
    looking = shown["on the image"]
    layer, head = np.unravel_index(np.nanargmax(looking), looking.shape)
    return Plot(
        "heads",
        "Every head of every layer: attention of the rows that write the answer, mean of the tokens, and how "
        "far the image moves the output of the head at the last prompt row.",
        f"Most attention on the image: layer {layers[layer]}, head {head}, {looking[layer, head]:.2f}.",
        figure,
    )


def _sinks(explanation: ExplanationArrays, word: int) -> Plot:
    """Norms of the stream at the first token and in the image."""
    figure, axes = new_figure(2.0)
    first, image = explanation.sinks.first_norm, explanation.sinks.image_norm
    for values, label, colour in (
        (first, "first token", SERIES[1]),
        (image, "image tokens, median", SERIES[0]),
    ):
        axes.plot(explanation.layers, values, color=colour, marker="o", markersize=3, label=label)
    axes.set(xlabel="layer", ylabel="norm of what enters it", ylim=(0, None))
    axes.legend(loc="best")
    return Plot(
        "sinks",
        "Size of the residual stream that enters each layer, at the first token and in the picture.",
        f"Norm of the first token from {first[0]:.3g} to {first[-1]:.3g}, of image tokens from "
        f"{image[0]:.3g} to {image[-1]:.3g}.",
        figure,
    )


def _cuts(explanation: ExplanationArrays, word: int) -> Plot:
    """What cutting paths does to a word: by rule, and by layers."""
    if not explanation.cuts or explanation.sliding is None:
        raise ValueError(f"no paths were cut: {explanation.left_out.get('cuts', 'no reason is known')}")
    tokens, name = list(explanation.plain.words[word].tokens), explanation.plain.words[word].text
    changes = {rule: float(explanation.cuts[rule][tokens].sum()) for rule in RULES}
    values = explanation.sliding[:, tokens].sum(axis=1)
    figure = cut_figure({"": (changes, values)}, explanation.window)
    said = ", ".join(f"{rule} {value:+.2f}" for rule, value in changes.items())
    return Plot(
        "cuts",
        f"What happens to “{name}” when attention paths are cut: in all layers, by path; below, from all "
        "text to the image in a few layers.",
        f"Change of the log probability of {name!r} in nats: {said}.",
        figure,
    )


def cut_figure(kinds: dict[str, tuple[dict[str, float], np.ndarray]], window: int) -> Any:
    """What cutting paths does to kinds of words.

    Args:
        kinds: by name ("" for a single one), change of the log probability by rule, and by the first layer
            of a window.
        window: layers in it.
    """
    figure, (bars, lines) = _panels(3.2, 2, 1)
    height = 0.7 / len(kinds)
    for number, (name, (changes, values)) in enumerate(kinds.items()):
        places = np.arange(len(RULES)) + (number - (len(kinds) - 1) / 2) * height
        own = [changes[rule] for rule in RULES]
        bars.barh(places, own, color=SERIES[number], height=height * 0.9, label=name or None)
        lines.plot(
            range(len(values)), values, color=SERIES[number], marker="o", markersize=3, label=name or None
        )
    bars.set_yticks(range(len(RULES)), [rule.replace("_", " ") for rule in RULES])
    bars.invert_yaxis()
    bars.axvline(0, color=INK, linewidth=0.6)
    bars.set_xlabel("change of log p in nats, all layers")
    lines.axhline(0, color=INK, linewidth=0.6)
    width = f"{window} layers" if window > 1 else "1 layer"
    lines.set(xlabel=f"first layer of a window of {width}", ylabel="change of log p")
    if len(kinds) > 1:
        bars.legend(fontsize=7, loc="best")
    return figure


def _faithfulness(explanation: ExplanationArrays, word: int) -> Plot:
    """Curves of deletion and insertion."""
    tested = explanation.faithfulness
    if tested is None:
        raise ValueError("the maps were not tested; explain with faithfulness=True (--faithfulness)")
    name = shortened(explanation.plain.words[explanation.word].text, 12)
    figure, panels = _panels(4.0, 2, 1)
    for axes, kind, says in zip(
        panels, ("deletion", "insertion"), ("taken away", "brought back"), strict=True
    ):
        random = np.array([getattr(each, kind) for each in tested.random])
        steps = np.linspace(0, 1, random.shape[1])
        axes.fill_between(steps, random.min(axis=0), random.max(axis=0), color=SOFT, alpha=0.25, linewidth=0)
        axes.plot(steps, random.mean(axis=0), color=SOFT, linestyle="--", label="random orders")
        for colour, each in zip(SERIES, explanation.maps, strict=False):
            axes.plot(steps, getattr(tested.curves[each], kind), color=colour, label=each)
        axes.set(xlabel=f"share of the picture {says}", ylabel=f"p of “{name}”", ylim=(0, None))
        axes.set_title(kind, fontsize=7.5)
    panels[0].legend(fontsize=6.5, loc="best")
    gains = {each: tested.gains(each) for each in explanation.maps}
    said = "; ".join(f"{each} {one:+.3f} and {other:+.3f}" for each, (one, other) in gains.items())
    return Plot(
        "faithfulness",
        "Cells of the picture leave, or come back, in the order of each map. A map that names what the model "
        "used makes the first curve fall early, and the second one rise early.",
        f"Areas better than random, by deletion and by insertion: {said}.",
        figure,
    )


def _panels(height: float, rows: int, columns: int) -> tuple[Any, Sequence[Any]]:
    figure, _ = new_figure(height)
    figure.clear()
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]


_DRAWN: dict[str, Callable[[ExplanationArrays, int], Plot]] = {
    "maps": _maps,
    "flow": _flow,
    "heads": _heads,
    "sinks": _sinks,
    "cuts": _cuts,
    "faithfulness": _faithfulness,
}
KINDS = tuple(_DRAWN)
"""Figures that there are: maps of a word, attention along the answer, by layer and head, sinks, cut paths,
and the test of the maps."""
