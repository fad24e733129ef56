"""Columns of the table of effects, scene by scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.answers import Split
from benchmarks.bootstrap import Ratio
from training.report import mentioned

COLUMNS = ("accuracy", "yes-ratio", "CHAIRi", "recall", "words")


def judge(split: Split, captions: Sequence[str], verdicts: Sequence[str]) -> dict[str, Ratio]:
    """Accuracy and share of yes of the questions; CHAIRi, recall of categories and words of the captions.

    Args:
        split: scenes and items.
        captions: one a scene.
        verdicts: answers to the yes/no questions, one an item; what does not begin with yes is a no.
    """
    asked, right, yes = np.zeros((3, split.count))
    for (index, _, present), verdict in zip(split.items, verdicts, strict=True):
        says_yes = verdict.lower().startswith("yes")
        asked[index] += 1
        yes[index] += says_yes
        right[index] += says_yes == present
    named, wrong, found, shown, words = np.zeros((5, split.count))
    for index, (scene, caption) in enumerate(zip(split.scenes, captions, strict=True)):
        categories, truth = mentioned(caption), set(scene.categories())
        named[index], wrong[index] = len(categories), len(categories - truth)
        shown[index], found[index] = len(truth), len(categories & truth)
        words[index] = len(caption.split())
    ratios = (
        Ratio(right, asked),
        Ratio(yes, asked),
        Ratio(wrong, named),
        Ratio(found, shown),
        Ratio(words, np.ones(split.count)),
    )
    return dict(zip(COLUMNS, ratios, strict=True))
