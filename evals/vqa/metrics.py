"""Accuracy over questions, by every scorer and type of answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Score

from . import scorer


def accuracies(
    samples: Sequence[Sample], texts: Sequence[str | None], scores: Sequence[Score | None], own: str
) -> dict[str, list[Metric]]:
    """For each scorer the accuracy over all questions, then over those of each type.

    Args:
        samples: what was asked.
        texts: raw answers; None: the sample failed.
        scores: what the scorer of the protocol made of each answer; None: the sample failed.
        own: that scorer, which comes first; the others follow where all questions have ten answers.
    """
    found: dict[str, list[Metric]] = {}
    types = np.array([sample.meta.get("answer_type") or "" for sample in samples])
    answered = np.array([text is not None for text in texts], dtype=float)
    others = scorer.OF_PEOPLE if all(len(sample.target) == scorer.M4C_ANSWERS for sample in samples) else ()
    groups = {"": np.ones_like(answered)} | {
        kind: (types == kind).astype(float) for kind in sorted(set(types.tolist()) - {""})
    }
    for mode in dict.fromkeys([own, *others]):
        accuracy = np.array(
            [
                0.0
                if text is None or score is None
                else score.value
                if mode == own
                else scorer.accuracy(text, sample.target, mode)
                for sample, text, score in zip(samples, texts, scores, strict=True)
            ]
        )
        found[mode] = [
            Metric("accuracy", (accuracy * member)[None], (answered * member)[None], group, "higher")
            for group, member in groups.items()
        ]
    return found
