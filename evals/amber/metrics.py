"""Figures of AMBER's yes/no questions as sums over samples; no is the positive class (arXiv 2311.07397)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .dataset import GROUPS


def amber_metrics(
    samples: Sequence[Sample], texts: Sequence[str | None], verdicts: Sequence[Verdict | None]
) -> list[Metric]:
    """The figures over all questions, then over those of each group.

    Args:
        samples: what was asked.
        texts: raw answers; None: the sample failed.
        verdicts: what a parser made of each answer.
    """
    answered = np.array([text is not None for text in texts], dtype=float)
    is_no = np.array([sample.target == "no" for sample in samples]) * answered
    is_yes = answered - is_no
    says_yes, says_no = (
        np.array([verdict == word for verdict in verdicts], dtype=float) for word in ("yes", "no")
    )
    right_no, right_yes = says_no * is_no, says_yes * is_yes
    terms = {
        "accuracy": (right_no + right_yes, answered, "higher"),
        "F1 of no": (2 * right_no, says_no + is_no, "higher"),
        "precision of no": (right_no, says_no, "higher"),
        "recall of no": (right_no, is_no, "higher"),
        "recall of yes": (right_yes, is_yes, "higher"),
        "false-yes rate": (says_yes * is_no, is_no, "lower"),
        "yes ratio": (says_yes, answered, ""),
        "unparsed": (answered - says_yes - says_no, answered, ""),
    }
    found = []
    for group in ("", *GROUPS):
        members = [not group or group in sample.meta["groups"] for sample in samples]
        asked = {sample.target for sample, member in zip(samples, members, strict=True) if member}
        mask = np.array(members, dtype=float)[None]
        for name, (parts, wholes, better) in terms.items() if asked else ():
            if name != "recall of yes" or "yes" in asked:  # no question of existence is right with yes
                metric = Metric(name, mask * parts, mask * wholes, group, better)  # type: ignore[arg-type]
                found.append(metric)
    return found
