"""Measure a model folder on unseen test scenes: `python -m training.report vlmfix/models/tiny-llava`."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vlmfix
from training.measure_sinks import measure_sinks
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.evaluation.datasets.synthetic.language import absent_categories
from vlmfix.evaluation.datasets.synthetic.scenes import (
    CATEGORIES,
    SIZE,
    VARIED_SIZES,
    Scene,
)
from vlmfix.inference.chat import prepare

SEED = 990_101
BARS = {
    "yes/no accuracy, random negatives": (0.88, 1.0),
    "yes/no accuracy, co-occurring negatives": (0.60, 0.85),
    "CHAIRi": (0.08, 0.35),
    "yes/no accuracy, grey image": (0.0, 0.60),
}


class Speaker:
    """A model folder with its processor, answering greedily in batches."""

    def __init__(self, folder: Path) -> None:
        self.model, self.processor = vlmfix.load(folder, dtype="float32")

    def inputs(self, images: list[Image.Image], prompts: list[str]) -> Any:
        return prepare([[image] for image in images], prompts, self.processor)

    def __call__(self, images: list[Image.Image], prompts: list[str], tokens: int) -> list[str]:
        return vlmfix.generate(
            self.model,
            self.processor,
            images,
            prompts,
            max_new_tokens=tokens,
            batch_size=50,
            do_sample=False,
        )


def mentioned(text: str) -> set[str]:
    """The categories that a caption names."""
    text = text.lower()
    return {n for n, c in CATEGORIES.items() if re.search(rf"\b({n}|{re.escape(c.plural)})\b", text)}


def presence_items(scenes: list[Scene], negatives: str) -> list[tuple[int, str, bool]]:
    """Balanced questions (scene, category, present) with absent categories of one kind.

    `random` draws any absent category, `popular` those most frequent in these scenes, `co-occurring` the
    missing partner of a present category.
    """
    rng = np.random.default_rng(0)
    frequency = {name: sum(name in s.categories() for s in scenes) for name in CATEGORIES}
    items = []
    for number, scene in enumerate(scenes):
        present = list(scene.categories())
        partners, others = absent_categories(scene)
        pool = [str(name) for name in rng.permutation(partners + others)]
        if negatives == "popular":
            pool.sort(key=lambda name: -frequency[name])
        if negatives == "co-occurring":
            pool = partners
        for name, truth in zip(pool[:3], rng.permutation(present), strict=False):
            items += [(number, name, False), (number, str(truth), True)]
    return items


def accuracy(
    speaker: Speaker, images: list[Image.Image], items: list[tuple[int, str, bool]]
) -> tuple[float, float]:
    """Accuracy and share of yes over presence questions; any answer but Yes counts as no."""
    prompts = [f"Is there {'an' if n[0] in 'aeiou' else 'a'} {n} in the image?" for _, n, _ in items]
    answers = speaker([images[i] for i, _, _ in items], prompts, 3)
    yes = np.array([answer.lower().startswith("yes") for answer in answers])
    truth = np.array([present for _, _, present in items])
    return float((yes == truth).mean()), float(yes.mean())


def caption_numbers(scenes: list[Scene], captions: list[str]) -> dict[str, float]:
    """CHAIRi, CHAIRs, recall of categories and words of captions."""
    named = [mentioned(text) for text in captions]
    present = [set(scene.categories()) for scene in scenes]
    wrong = [len(n - p) for n, p in zip(named, present, strict=True)]
    hits = sum(len(n & p) for n, p in zip(named, present, strict=True))
    return {
        "CHAIRi": sum(wrong) / max(1, sum(map(len, named))),
        "CHAIRs": float(np.mean([w > 0 for w in wrong])),
        "caption recall": hits / sum(map(len, present)),
        "caption words": float(np.mean([len(text.split()) for text in captions])),
    }


def short_answers(speaker: Speaker, scenes: list[Scene], images: list[Image.Image]) -> dict[str, float]:
    """Accuracy of colour questions (single objects) and of count questions, one of each per scene."""
    colors, counts = [], []
    for number, scene in enumerate(scenes):
        groups = scene.categories()
        single = [name for name, items in groups.items() if len(items) == 1]
        if single:
            colors.append((number, f"What color is the {single[0]}?", groups[single[0]][0].color))
        most = max(groups, key=lambda name: len(groups[name]))
        counts.append((number, f"How many {CATEGORIES[most].plural} are there?", str(len(groups[most]))))
    result = {}
    for name, asked in (("color accuracy", colors), ("count accuracy", counts)):
        answers = speaker([images[i] for i, _, _ in asked], [q for _, q, _ in asked], 4)
        right = [answer.lower() == truth for answer, (_, _, truth) in zip(answers, asked, strict=True)]
        result[name] = float(np.mean(right))
    return result


def measure(speaker: Speaker, count: int, sizes: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """All numbers of the report over `count` test scenes."""
    scenes = [sample_scene(SEED, i, split="test", size=sizes[i % len(sizes)]) for i in range(count)]
    images = [render(scene) for scene in scenes]
    grey = [Image.new("RGB", image.size, (128, 128, 128)) for image in images]
    result = {}
    for negatives in ("random", "popular", "co-occurring"):
        key = f"yes/no accuracy, {negatives} negatives"
        items = presence_items(scenes, negatives)
        result[key], result[f"yes share, {negatives} negatives"] = accuracy(speaker, images, items)
    items = presence_items(scenes, "random")
    result["yes/no accuracy, grey image"], result["yes share, grey image"] = accuracy(speaker, grey, items)
    captions = speaker(images, ["Describe the image."] * count, 80)
    return result | caption_numbers(scenes, captions) | short_answers(speaker, scenes, images)


def table(numbers: dict[str, float]) -> str:
    """The numbers with their bars as a Markdown table."""
    lines = ["| | value | bar | |", "| --- | --- | --- | --- |"]
    for name, value in numbers.items():
        low, high = BARS.get(name, (None, None))
        bar, verdict = "", ""
        if low is not None and high is not None:
            bar, verdict = f"{low:.2f} to {high:.2f}", "reached" if low <= value <= high else "missed"
        lines.append(f"| {name} | {value:.3f} | {bar} | {verdict} |")
    return "\n".join(lines)


def sink_table(layers: list[dict[str, float]]) -> str:
    """The sinks layer by layer as a Markdown table."""
    names = list(layers[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(f"{layer[name]:g}" for name in names) + " |" for layer in layers]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=500, help="test scenes")
    parser.add_argument("--varied", action="store_true", help="scenes of four sizes, for tiny-qwen2.5-vl")
    arguments = parser.parse_args()
    start = time.time()
    speaker = Speaker(arguments.model)
    numbers = measure(speaker, arguments.count, VARIED_SIZES if arguments.varied else (SIZE,))
    print(table(numbers), end="\n\n")
    layers = measure_sinks(speaker)
    print(sink_table(layers), end="\n\n")
    print(json.dumps({"model": str(arguments.model), "numbers": numbers, "sinks": layers}))
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
