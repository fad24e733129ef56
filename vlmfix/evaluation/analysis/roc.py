"""Area under the ROC curve of the yes-no margin, and its difference between two methods.

No constant offset between yes and no changes this area: it says how well a method separates the questions
whose answer is yes from the others, not how often it says yes.
"""

from __future__ import annotations

import numpy as np

from vlmfix.evaluation.analysis.intervals import Linearized, t_estimate
from vlmfix.evaluation.analysis.ranks import area, below, placements
from vlmfix.evaluation.analysis.significance import EQUAL, SwapTest, swapped
from vlmfix.evaluation.analysis.statistics import Estimate, totals


def auc(margins: np.ndarray, is_yes: np.ndarray) -> float:
    """The probability that a question with the answer yes has a larger margin than one with no; ties half.

    Args:
        margins: how far yes is above no at the first token of each answer, `(samples,)`.
        is_yes: whether yes is right, `(samples,)` bool.

    Raises:
        ValueError: all right answers are the same, or a margin is NaN.
    """
    _check(margins, is_yes)
    return area(margins, is_yes)[0]


def auc_difference(
    margins: np.ndarray, others: np.ndarray, is_yes: np.ndarray, clusters: np.ndarray
) -> Estimate:
    """The area of one method less the area of another on the same questions, with its interval.

    The standard error is the one of DeLong et al. (1988) with the covariances inside images added, after
    Obuchowski (1997), in the sandwich form of all other intervals; Student's t with C - 1 degrees of freedom.

    Args:
        margins: of the one method, `(samples,)`.
        others: of the other method, `(samples,)`.
        is_yes: whether yes is right, `(samples,)` bool.
        clusters: label of the image of each question, `(samples,)`.

    Raises:
        ValueError: all right answers are the same, or a margin is NaN.
    """
    _check(margins, is_yes)
    _check(others, is_yes)
    (own, own_shares), (other, other_shares) = (area(each, is_yes) for each in (margins, others))
    value = own - other
    shares = totals((own_shares - other_shares)[None], clusters)[0]
    return t_estimate(Linearized(value, shares, len(margins), len(shares)), (-1.0, 1.0))


def auc_swap_test(
    margins: np.ndarray, others: np.ndarray, is_yes: np.ndarray, clusters: np.ndarray
) -> SwapTest:
    """Whether the areas of two methods differ by more than chance: their margins are exchanged by image.

    Margins of two methods need not be on one scale, so each margin is first replaced by its rank among all
    of its method's, which changes neither area: if the methods separate equally well, the ranks of an image
    could as well have come from the other method. With the images as units, this is the permutation test of
    Bandos, Rockette and Gur (2005), whose difference is a sum of one term an image: an exchange turns its
    sign.

    Args:
        margins: of the one method, `(samples,)`.
        others: of the other method, `(samples,)`.
        is_yes: whether yes is right, `(samples,)` bool.
        clusters: label of the image of each question, `(samples,)`.

    Raises:
        ValueError: all right answers are the same, or a margin is NaN.
    """
    _check(margins, is_yes)
    _check(others, is_yes)
    own, theirs = _ranks(margins), _ranks(others)
    both, answers = np.concatenate([own, theirs]), np.concatenate([is_yes, is_yes])
    changes = placements(own, is_yes, both, answers) - placements(theirs, is_yes, both, answers)
    terms = totals((changes / np.where(is_yes, is_yes.sum(), (~is_yes).sum()))[None], clusters)[0]
    # Nothing depends on what images are called, nor on which of the two methods comes first.
    differing = np.sort(np.sign(terms.sum()) * terms[np.abs(terms) > EQUAL])
    p = swapped(lambda swaps: differing.sum() - 2 * (swaps @ differing), len(differing))
    return SwapTest(p, len(terms), len(differing))


def _check(margins: np.ndarray, is_yes: np.ndarray) -> None:
    if is_yes.all() or not is_yes.any():
        word = "no question has" if not is_yes.any() else "all questions have"
        raise ValueError(f"the area under the ROC curve needs both right answers; {word} the answer yes")
    if np.isnan(margins).any():
        raise ValueError(f"{int(np.isnan(margins).sum()):,} of {len(margins):,} margins are NaN")


def _ranks(margins: np.ndarray) -> np.ndarray:
    """The rank of each margin among all; equal ones share the middle of theirs."""
    return below(margins, margins)
