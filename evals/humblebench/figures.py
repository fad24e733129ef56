"""Figures of HumbleBench: accuracy, and whether "None of the above" is said where it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vlmfix.evaluation.analysis.results import Metric

from .rows import LETTERS, NONE_OF_THESE, Variant

Better = Literal["higher", "lower", ""]


def figures(
    letters: Sequence[str | None],
    labels: Sequence[str],
    types: Sequence[str],
    answered: Sequence[bool],
    *,
    variant: Variant,
) -> list[Metric]:
    """All figures over all questions, then the accuracy by type.

    With a picture of noise nothing can be seen: what one wants is "None of the above", which comes first, and
    the accuracy is no more than agreement with labels that the picture cannot support.

    Args:
        letters: what a parser made of each answer; None: nothing, or there is none.
        labels: what is right.
        types: of the questions.
        answered: whether there is an answer; without one a question adds nothing.
        variant: of the questions.
    """
    there = np.array(answered, dtype=float)
    said = {letter: np.array([each == letter for each in letters]) * there for letter in LETTERS}
    said["NA"] = np.array([each is None for each in letters]) * there
    right = np.array([each == label for each, label in zip(letters, labels, strict=True)]) * there
    is_none = np.array([label == NONE_OF_THESE for label in labels]) * there
    says_none = said[NONE_OF_THESE]
    is_noise = variant == "humble_gn"
    accuracy = "agreement with labels" if is_noise else "acc"
    terms: dict[str, tuple[np.ndarray, np.ndarray, Better]] = {
        accuracy: (right, there, "" if is_noise else "higher"),
        "e_recall": (says_none * is_none, is_none, "" if is_noise else "higher"),
        "e_precision": (says_none * is_none, says_none, "" if is_noise else "higher"),
        "false_e": (says_none * (there - is_none), there - is_none, "" if is_noise else "lower"),
    }
    shares: dict[str, tuple[np.ndarray, np.ndarray, Better]] = {
        f"share_{letter}": (found, there, "higher" if is_noise and letter == NONE_OF_THESE else "")
        for letter, found in said.items()
    }
    if is_noise:
        first = f"share_{NONE_OF_THESE}"
        terms = {first: shares.pop(first)} | terms
    terms |= shares | {"labels E": (is_none, there, "")}
    found = [_metric(name, *each) for name, each in terms.items()]
    kinds = np.array(types)
    for kind in sorted(set(types)):
        parts, wholes, better = terms[accuracy]
        member = (kinds == kind).astype(float)
        found.append(_metric(accuracy, parts * member, wholes * member, better, kind))
    return found


def raw_e_accuracy(texts: Sequence[str | None], labels: Sequence[str]) -> Metric:
    """The "E accuracy" of the official code, which no parser reads: the whole answer has to be the letter.

    It counts "E." as wrong, which the same code's accuracy counts as right, so it compares with nothing.
    """
    is_none = [label == NONE_OF_THESE and text is not None for text, label in zip(texts, labels, strict=True)]
    hits = [text == NONE_OF_THESE and is_it for text, is_it in zip(texts, is_none, strict=True)]
    return _metric("raw E accuracy", np.array(hits, dtype=float), np.array(is_none, dtype=float), "")


def _metric(name: str, parts: np.ndarray, wholes: np.ndarray, better: Better, group: str = "") -> Metric:
    return Metric(name, parts[None], wholes[None], group, better)
