"""How long answers are, which belongs beside every figure of hallucination."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric


def length_metrics(texts: Sequence[str | None], cut: Sequence[bool]) -> list[Metric]:
    """Mean words, and the share of answers that were cut at the length limit.

    Args:
        texts: raw answers; None: the item failed.
        cut: which of them were cut.
    """
    answered = np.array([[text is not None for text in texts]], dtype=float)
    words = np.array([[0 if text is None else len(text.split()) for text in texts]], dtype=float)
    truncated = np.array([list(cut)], dtype=float) * answered
    return [Metric("words", words, answered, percent=False), Metric("truncated", truncated, answered)]
