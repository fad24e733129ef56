"""Controls that match a method: greedy decoding that says yes as often, captions of equal lengths, random
choices where it chooses, and for a pruning, smaller pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.answers import Setting
from benchmarks.bootstrap import Ratio
from vlmfix.evaluation.runner.truncation import limits
from vlmfix.methods.baselines.output_shift import calibrate_shift
from vlmfix.methods.baselines.random_directions import BaselineRandomDirections
from vlmfix.methods.baselines.random_heads import BaselineRandomHeads

MATCHED = {
    "shifted greedy's accuracy": "accuracy",
    "CHAIRi at equal length": "CHAIRi",
    "recall at equal length": "recall",
}
"""Columns of the table, and which column of the control and the method they compare."""

SMALLER = {
    "accuracy of smaller pictures": "accuracy",
    "CHAIRi of smaller pictures": "CHAIRi",
    "recall of smaller pictures": "recall",
}
"""The same for a pruning and pictures that have at most as many tokens (`baseline.resize`)."""

RANDOM = {
    "accuracy of random choices": "accuracy",
    "CHAIRi of random choices": "CHAIRi",
    "recall of random choices": "recall",
}
"""The same for a method that chooses heads, directions or tokens, and as many random ones in their place."""

DRAWS = 3


def random_choices(setting: Setting, image_tokens: float | None) -> list[Setting]:
    """What a setting is with random choices, once for each draw; empty for a method that makes none.

    Args:
        setting: of a method.
        image_tokens: of a pruning, its mean number in a layer; None of others.
    """
    if image_tokens is not None:
        kept = max(1, round(image_tokens))
        return [Setting("random_tokens", {"kept_tokens": kept, "seed": seed}) for seed in range(DRAWS)]
    for control in (BaselineRandomHeads, BaselineRandomDirections):
        if setting.method in control.stand_ins:
            of = {"of": setting.method, "settings": setting.parameters}
            return [Setting(control.name, {**of, "seed": seed}) for seed in range(DRAWS)]
    return []


def pooled(draws: Sequence[Mapping[str, Ratio]]) -> dict[str, Ratio]:
    """Columns of several draws about the same scenes as those of one."""
    return {
        name: Ratio(*(np.sum([each[name][term] for each in draws], axis=0) for term in (0, 1)))
        for name in draws[0]
    }


def shifted(margins: Sequence[float], verdicts: Sequence[str]) -> list[str]:
    """Greedy answers under the offset between yes and no at which as many say yes as here.

    Args:
        margins: between yes and no at the first token of each item under greedy decoding, in nats.
        verdicts: of the method, one an item.
    """
    says_yes = [verdict.lower().startswith("yes") for verdict in verdicts]
    delta = calibrate_shift(margins, sum(says_yes) / len(says_yes))
    return ["Yes" if margin + delta > 0 else "No" for margin in margins]


def cut(captions: Sequence[str], others: Sequence[str], tokenizer: Any) -> list[str]:
    """Captions that are longer than their counterparts, cut to the same number of tokens.

    Where they end within a sentence they do so here, unlike in the control of the harness: a caption that is
    one word longer must not lose a sentence to its counterpart.

    Args:
        captions: one a scene.
        others: their counterparts.
        tokenizer: of the model.
    """
    tokens, targets = (
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        for texts in (captions, others)
    )
    left = limits([len(ids) for ids in tokens], [len(ids) for ids in targets])
    return [
        caption if limit == len(ids) else tokenizer.decode(ids[:limit])
        for caption, ids, limit in zip(captions, tokens, left, strict=True)
    ]
