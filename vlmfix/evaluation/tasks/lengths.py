"""Lengths of answers, which belong beside every figure of hallucination."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vlmfix.evaluation.analysis.results import Metric

_CLOSING = r"\"'\])}»”’“‘«"  # noqa: RUF001
_LAST_END = re.compile(rf"[.!?][{_CLOSING}]*(?=\s|$)")


def length_metrics(texts: Sequence[str | None], truncated: Sequence[bool]) -> list[Metric]:
    """Mean words, and the share of answers that were cut at the length limit.

    Args:
        texts: raw answers; None: the sample failed.
        truncated: which of them were cut.
    """
    answered = np.array([[text is not None for text in texts]], dtype=float)
    words = np.array([[0 if text is None else len(text.split()) for text in texts]], dtype=float)
    marked = np.array([list(truncated)], dtype=float) * answered
    return [Metric("words", words, answered, percent=False), Metric("truncated", marked, answered)]


def is_finished(caption: str) -> bool:
    """Whether it ends with a sentence, or is empty."""
    text = caption.rstrip()
    return not text or any(found.end() == len(text) for found in _LAST_END.finditer(text))


def drop_incomplete(caption: str) -> str:
    """The caption without what follows its last complete sentence; all of it if it has none.

    A length limit cuts captions in the middle of a sentence, whose objects a longer one might explain.
    """
    ends = [found.end() for found in _LAST_END.finditer(caption)]
    return caption[: ends[-1]] if ends else caption
