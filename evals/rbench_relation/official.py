"""The official figures of R-Bench: the mean over five lists of ids (arXiv 2406.16449)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, Verdict

FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio")

_EPSILON = 1e-5


def official_figures(texts: Sequence[str], labels: Sequence[Verdict]) -> dict[str, float]:
    """The figures of one list as mrwu-mac/R-Bench has them: its small number in the denominators of all but
    accuracy and yes ratio makes them a little too low.

    Args:
        texts: raw answers, which POPE's official parser reads.
        labels: what is right, in the same order.

    Raises:
        ValueError: there are none.
    """
    if not labels:
        raise ValueError("no answers to score; give those of all lists")
    cells = Counter(
        (PARSERS["official"](text, label), label) for text, label in zip(texts, labels, strict=True)
    )
    tp, fp, fn = cells["yes", "yes"], cells["yes", "no"], cells["no", "yes"]
    precision, recall = tp / (tp + fp + _EPSILON), tp / (tp + fn + _EPSILON)
    return {
        "accuracy": (tp + cells["no", "no"]) / len(labels),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall + _EPSILON),
        "yes_ratio": (tp + fp) / len(labels),
    }


def mean_of_subsets(subsets: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the lists; they overlap, so that their spread is no standard error."""
    return {name: sum(each[name] for each in subsets) / len(subsets) for name in FIGURES}
