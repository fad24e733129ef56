"""How well margins rank the questions whose answer is yes above the others, and the share of each in it.

No constant offset between yes and no changes these figures.
"""

from __future__ import annotations

import numpy as np


def placements(
    margins: np.ndarray, is_yes: np.ndarray, among: np.ndarray, among_is_yes: np.ndarray
) -> np.ndarray:
    """For each question the share of those with the other right answer that it is on the right side of.

    Args:
        margins: `(samples,)`.
        is_yes: `(samples,)` bool.
        among: what they are compared with, `(others,)`.
        among_is_yes: `(others,)` bool.

    Returns:
        `(samples,)` in [0, 1]; ties count half.
    """
    yes, no = among[among_is_yes], among[~among_is_yes]
    return np.where(is_yes, below(margins, no) / len(no), 1 - below(margins, yes) / len(yes))


def below(margins: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of the others are smaller than each margin, `(samples,)`; those that are equal count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, margins, "left") + np.searchsorted(ordered, margins, "right")) / 2


def area(margins: np.ndarray, is_yes: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under the ROC curve: how often a yes-question has the larger margin of a pair; ties half.

    Args:
        margins: how far yes is above no at the first token of each answer, `(samples,)`.
        is_yes: whether yes is right, `(samples,)` bool; both answers occur.

    Returns:
        The area, and by how much each question moves it to first order, `(samples,)` summing to 0: its
        placement less the area, over the number of questions with the same answer (DeLong et al. 1988).
    """
    placed = placements(margins, is_yes, margins, is_yes)
    value = float(placed[is_yes].mean())
    return value, (placed - value) / np.where(is_yes, is_yes.sum(), (~is_yes).sum())


def average_precision(margins: np.ndarray, is_yes: np.ndarray) -> tuple[float, np.ndarray]:
    """The precision of the questions with at least the margin of a yes-question, on average over these.

    Questions with equal margins are taken together. The shares are the derivative by each question's weight.

    Args:
        margins: `(samples,)`.
        is_yes: `(samples,)` bool; both answers occur.

    Returns:
        The average precision, and by how much each question moves it to first order, `(samples,)` summing to
        0.
    """
    levels, level = np.unique(-margins, return_inverse=True)  # the largest margin first
    yes = np.bincount(level, is_yes, len(levels))
    count = np.cumsum(np.bincount(level, minlength=len(levels)))
    found = np.cumsum(yes)
    precision = found / count
    positives = found[-1]
    value = float((yes * precision).sum() / positives)
    # A question weighs in the precision at its own level and at all levels of smaller margins.
    gain = np.cumsum((yes / count)[::-1])[::-1]
    loss = np.cumsum((yes * found / count**2)[::-1])[::-1]
    shares = is_yes * (precision[level] + gain[level] - value) - loss[level]
    return value, shares / positives


MEASURES = {"AUC": area, "average precision": average_precision}
"""Figures of a ranking by the name that tables show."""
