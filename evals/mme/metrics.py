"""Figures of MME as sums over samples, so that they get intervals and paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no import yes_no_metrics
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .subtasks import missing

_BESIDE = ("recall", "false-yes rate", "yes ratio", "unparsed")
"""What explains accuracies."""


def mme_metrics(
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    verdicts: Sequence[Verdict | None],
    sums: Mapping[str, Sequence[str]],
) -> list[Metric]:
    """Score, accuracy and accuracy+ of each sum and subtask; accuracies of a sum are means over its subtasks.

    A score is a sum of ratios. Here it is their mean, with numerators times their number. A sum that lacks
    subtasks is called partial, and the headline has their number beside it. An image of which a question was
    not asked or failed is left out of accuracy+.

    Args:
        samples: what was asked; several times, where there are several repeats.
        texts: raw answers; None: the sample failed.
        verdicts: what a parser made of each answer.
        sums: by name, with the subtasks that each is over; "" is the headline.
    """
    subtasks = np.array([sample.meta["split"] for sample in samples])
    there = list(dict.fromkeys(subtasks.tolist()))
    answered = np.array([text is not None for text in texts], dtype=float)
    right = np.array(
        [verdict == sample.target for verdict, sample in zip(verdicts, samples, strict=True)], dtype=float
    )
    both, units = _by_unit(samples, answered, right * answered)
    groups = {**sums, **{name: (name,) for name in there}}
    found = []
    for group, over in groups.items():
        masks = np.array([subtasks == name for name in over if name in there], dtype=float)
        accuracy = masks * right * answered, masks * answered
        plus = masks * both, masks * units
        parts, wholes = (np.concatenate(each) for each in zip(accuracy, plus, strict=True))
        most = 100.0 * len(parts)
        lacking = len(missing(over, there))
        name = f"{group}, partial" if group and lacking else group
        found += [
            Metric("score", most * parts, wholes, name, "higher", percent=False, most=most),
            Metric("accuracy", *accuracy, name, "higher"),
            Metric("accuracy+", *plus, name, "higher"),
        ]
        if lacking and not group:
            told = lacking * answered[None], answered[None]
            found.append(Metric("missing subtasks", *told, percent=False))
    beside = yes_no_metrics(samples, texts, verdicts)
    return found + [each for each in beside if each.name in _BESIDE]


def _by_unit(
    samples: Sequence[Sample], answered: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images with both questions right, and images with both answered; each counts at its first question."""
    repeat: Counter[str] = Counter()
    members: dict[tuple[str, int], list[int]] = {}
    for index, sample in enumerate(samples):
        members.setdefault((sample.cluster, repeat[sample.id]), []).append(index)
        repeat[sample.id] += 1
    both, units = np.zeros(len(samples)), np.zeros(len(samples))
    for indices in members.values():
        if len(indices) == 2 and answered[indices].all():
            units[indices[0]] = 1
            both[indices[0]] = right[indices].all()
    return both, units
