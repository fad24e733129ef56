"""How well maps of `vlmfix explain` show the objects of captions, and whether the model goes by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from rich.progress import track
from transformers import PreTrainedModel, ProcessorMixin
from vlmfix.evals.chair.explained_objects import objects_of_scene

import vlmfix
from benchmarks.answers import Split
from benchmarks.bootstrap import Ratio, compare, resample
from vlmfix.explanation import judging
from vlmfix.explanation.answers import Named
from vlmfix.explanation.faithfulness import judge_maps, word_score
from vlmfix.explanation.reading import Reader

PROMPT = "Describe the image."
FIGURES = (
    "pointing",
    "pointing without tolerance",
    "energy",
    "attention_iou",
    "iou_otsu",
    "iou_area",
    "auroc",
)


@dataclass
class Sums:
    """Sums of a quantity over words, and their number, by scene."""

    sums: np.ndarray
    counts: np.ndarray
    by_category: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, scenes: int) -> Sums:
        return cls(np.zeros(scenes), np.zeros(scenes))

    def add(self, scene: int, value: float, category: str = "") -> None:
        self.sums[scene] += value
        self.counts[scene] += 1
        self.by_category[category].append(value)

    def text(self, weights: np.ndarray) -> str:
        """The mean with its 95 % interval, clustered by scene."""
        zero = np.zeros_like(self.counts)
        found = compare(Ratio(self.sums, self.counts), Ratio(zero, self.counts), weights)
        return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"

    @property
    def over_categories(self) -> float:
        """Mean over the words of a category, then over categories, as the pointing game has it."""
        return float(np.mean([np.mean(each) for each in self.by_category.values()]))


def maps_of(explanation: vlmfix.Explanation, named: Named, other: np.ndarray | None) -> dict[str, np.ndarray]:
    """Maps of an object in pixels: those of the explanation, every layer alone, and controls."""
    found = {name: explanation.saliency(name, *named.words) for name in explanation.maps}
    attention, sinks = explanation.plain.attention, explanation.sinks.is_sink
    assert attention is not None
    tokens = [token for word in named.words for token in explanation.plain.words[word].tokens]
    for place, layer in enumerate(explanation.layers):
        own = attention[place, tokens].mean(axis=0) * ~sinks[place]
        found[f"layer {layer}"] = explanation.cells.pixels(own)
    found["always the middle"] = judging.centred_gaussian(explanation.picture.size)
    if other is not None:
        found["of another picture"] = other
    return found


def figures_of(saliency: np.ndarray, mask: np.ndarray) -> dict[str, judging.Figure]:
    """By name; a flat map has those of chance."""
    found = judging.judge(saliency, mask)
    if found is None:
        return {}
    exact = judging.pointing(saliency, mask, tolerance=0)
    return found | {"pointing without tolerance": exact}


def measure_maps(
    model: PreTrainedModel, processor: ProcessorMixin, split: Split, steps: int
) -> tuple[dict[str, dict[str, Sums]], dict[str, dict[str, Sums]]]:
    """Figures by map, and areas under curves by order, of captions of all scenes.

    Args:
        split: scenes.
        steps: of deletion and insertion.
    """
    new = partial(Sums.of, split.count)
    figures: dict[str, dict[str, Sums]] = defaultdict(lambda: defaultdict(new))
    areas: dict[str, dict[str, Sums]] = defaultdict(lambda: defaultdict(new))
    other: np.ndarray | None = None
    for number, scene in enumerate(track(split.scenes, description="captions", transient=True)):
        objects = objects_of_scene(scene)
        explanation = vlmfix.explain(model, processor, split.images[number], PROMPT, objects=objects)
        present = [
            each
            for each in explanation.plain.named or ()
            if each.is_present and objects.masks[each.category].any()
        ]
        for named in present:
            maps = maps_of(explanation, named, other)
            for name, saliency in maps.items():
                own = figures_of(saliency, objects.masks[named.category])
                for figure, (value, chance) in own.items():
                    figures[name][figure].add(number, value, named.category)
                    if name == "band":
                        figures["chance"][figure].add(number, chance, named.category)
        if present:
            for name, (deletion, insertion) in areas_of(model, processor, explanation, present[0], steps):
                areas[name]["deletion"].add(number, deletion)
                areas[name]["insertion"].add(number, insertion)
            other = explanation.saliency("band", *present[0].words)
    return figures, areas


def areas_of(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    explanation: vlmfix.Explanation,
    named: Named,
    steps: int,
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Areas under the curves of deletion and insertion of a word, by order; none where the picture does not
    move it."""
    reader = Reader(model, processor, explanation.picture, explanation.prompt)
    plain, cells = explanation.plain, explanation.cells
    score = word_score(reader, plain.token_ids, plain.words[named.word].tokens)
    maps = {name: cells.of_tokens(explanation.values(name, named.word)) for name in explanation.maps}
    tested = judge_maps(score, explanation.picture, cells, maps, steps=steps)
    if tested.has_effect:
        yield from ((name, curves.areas) for name, curves in tested.curves.items())
        one, two = np.mean([each.areas for each in tested.random], axis=0).tolist()
        yield "random", (one, two)


def tables(
    figures: Mapping[str, Mapping[str, Sums]], areas: Mapping[str, Mapping[str, Sums]], scenes: int
) -> Iterator[str]:
    """Both as Markdown tables."""
    weights = resample(scenes)
    yield "| map | pointing, mean of categories | " + " | ".join(FIGURES).replace("_", " ") + " |"
    yield "| --- " * (len(FIGURES) + 2) + "|"
    for name, row in figures.items():
        cells = [row[each].text(weights) for each in FIGURES]
        yield f"| {name} | {row['pointing'].over_categories:.3f} | {' | '.join(cells)} |"
    yield ""
    yield "| order of the cells | deletion, small is good | insertion, large is good |"
    yield "| --- | --- | --- |"
    for name, row in areas.items():
        yield f"| {name} | {row['deletion'].text(weights)} | {row['insertion'].text(weights)} |"
