"""Figures of AMBER's descriptions as sums over samples (arXiv 2311.07397)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample

from .scorer import Counts


def amber_metrics(
    samples: Sequence[Sample], parsed: Sequence[Mapping[str, Any] | None], variant: str
) -> list[Metric]:
    """CHAIR, Cover, Hal and Cog of one variant of the rules.

    Args:
        samples: what was asked.
        parsed: what the task made of each description; None: the sample failed.
        variant: of the rules.
    """
    nouns, hallucinated, truth, covered, hallu, expected, answered, clean = _terms(samples, parsed, variant)
    return [
        Metric("CHAIR", hallucinated, nouns, better="lower"),
        Metric("Cover", covered, truth, better="higher"),
        Metric("Hal", answered - clean, answered, better="lower"),
        Metric("Cog", expected, hallu, better="lower"),
        Metric("nouns", nouns, answered, percent=False),
    ]


def counts_of(samples: Sequence[Sample], parsed: Sequence[Mapping[str, Any] | None], variant: str) -> Counts:
    """The sums of which the figures are made; see `amber_metrics`."""
    return Counts(*(int(term.sum()) for term in _terms(samples, parsed, variant)))


def _terms(
    samples: Sequence[Sample], parsed: Sequence[Mapping[str, Any] | None], variant: str
) -> list[np.ndarray]:
    """The fields of `Counts` for each sample, `(1, samples)` each."""
    rows = [
        [0] * 8
        if each is None
        else [
            len(each["nouns"]),
            len(each[variant]["hallucinated"]),
            len(sample.target),
            len(each[variant]["covered"]),
            len(sample.meta["hallu"]),
            len(each[variant]["expected"]),
            1,
            not each[variant]["hallucinated"],
        ]
        for sample, each in zip(samples, parsed, strict=True)
    ]
    return [column[None] for column in np.array(rows, dtype=float).reshape(len(rows), 8).T]
