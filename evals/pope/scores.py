"""Figures of POPE: what a parser makes of the answers of a split (arXiv 2305.10355)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vlmfix.evaluation.tasks.ratios import harmonic_mean, ratio, undefined
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

DEFAULT_PARSER = "strict"
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed_share")
"""The figures of a `Score` that are averaged over splits."""


@dataclass(frozen=True)
class Score:
    """What one parser makes of one split; positive is yes.

    An unparsed answer is wrong and no yes: it counts in none of the four cells.

    Args:
        parser: name.
        paired: answers with a label.
        answers: answers in all, the denominator of the yes ratio.
        tp: said yes, is yes; and so on for `fp`, `tn`, `fn`.
        unparsed_yes: unparsed answers where yes is right.
        unparsed_no: unparsed answers where no is right.
        accuracy: right answers over paired ones.
        precision: `tp` over all yes.
        recall: `tp` over questions where yes is right; the parser `lmms_eval` leaves unparsed ones out.
        f1: harmonic mean of these two.
        yes_ratio: answers that are yes over `answers`.
        unparsed_share: unparsed answers over paired ones.
        undefined: names of the figures with a zero denominator, which are 0.0.
    """

    parser: str
    paired: int
    answers: int
    tp: int
    fp: int
    tn: int
    fn: int
    unparsed_yes: int
    unparsed_no: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    unparsed_share: float
    undefined: tuple[str, ...]


def score(
    verdicts: Sequence[Verdict | None], labels: Sequence[Verdict], *, parser: str = DEFAULT_PARSER
) -> Score:
    """The figures of one parser on one split.

    Args:
        verdicts: what the parser made of each answer; None is unparsed.
        labels: what is right, in the same order. Under `official` one list may be longer, as in the
            official script: what has no partner counts in the yes ratio only.
        parser: name of the parser, whose own way of counting is followed.

    Raises:
        ValueError: if the lengths differ under another parser.
    """
    if len(verdicts) != len(labels) and parser != "official":
        raise ValueError(
            f"{len(verdicts)} verdicts for {len(labels)} labels; give as many of one as of the other"
        )
    cells = Counter(zip(verdicts, labels, strict=False))
    tp, fn, unparsed_yes = (cells[verdict, "yes"] for verdict in ("yes", "no", None))
    fp, tn, unparsed_no = (cells[verdict, "no"] for verdict in ("yes", "no", None))
    paired = cells.total()
    positives = tp + fn + (0 if parser == "lmms_eval" else unparsed_yes)
    precision, recall = ratio(tp, tp + fp), ratio(tp, positives)
    wholes = {
        "accuracy": paired,
        "precision": tp + fp,
        "recall": positives,
        "f1": precision + recall,
        "yes_ratio": len(verdicts),
        "unparsed_share": paired,
    }
    return Score(
        parser=parser,
        paired=paired,
        answers=len(verdicts),
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        unparsed_yes=unparsed_yes,
        unparsed_no=unparsed_no,
        accuracy=ratio(tp + tn, paired),
        precision=precision,
        recall=recall,
        f1=harmonic_mean(precision, recall),
        yes_ratio=ratio(verdicts.count("yes"), len(verdicts)),
        unparsed_share=ratio(unparsed_yes + unparsed_no, paired),
        undefined=undefined(wholes),
    )


def mean_of_splits(scores: Sequence[Score]) -> dict[str, float]:
    """The unweighted mean of each of `FIGURES` over splits; a figure undefined in one counts as 0.0.

    Raises:
        ValueError: if there are no splits.
    """
    if not scores:
        raise ValueError("no splits to average; give the score of at least one")
    return {name: sum(getattr(each, name) for each in scores) / len(scores) for name in FIGURES}
