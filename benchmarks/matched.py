"""Controls that match a method: greedy decoding that says yes as often, captions of equal lengths, and for a
pruning, smaller pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmfix.evaluation.runner.truncation import limits
from vlmfix.methods.baselines.output_shift import calibrate_shift

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
