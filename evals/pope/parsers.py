"""POPE: yes/no questions about objects, read by named parsers (arXiv 2305.10355)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmfix.evaluation.tasks.ratios import harmonic_mean, ratio, undefined
from vlmfix.evaluation.tasks.yes_no import Parser, Verdict, exactly, strict

PARSERS: dict[str, Parser] = {}
"""Rules that read an answer, by name: `PARSERS["strict"](text, target)`; None is unparsed."""

DEFAULT_PARSER = "strict"
FIGURES = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed_share")
"""The figures of a `Score` that are averaged over splits."""

_SPLITTING = ';/[]"{}()=+\\_-><@`,?!'


def register_parser(name: str) -> Callable[[Parser], Parser]:
    """Make a function of `(text, target)` a parser of that name.

    Raises:
        ValueError: if there is one already.
    """

    def register(parser: Parser) -> Parser:
        if name in PARSERS:
            raise ValueError(f"there is a parser {name!r} already; choose another name")
        PARSERS[name] = parser
        return parser

    return register


def parser_named(name: str) -> Parser:
    """The parser of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in PARSERS:
        raise ValueError(f"unknown parser {name!r}; choose from {', '.join(PARSERS)}")
    return PARSERS[name]


@register_parser("official")
def official(text: str, target: Verdict) -> Verdict:
    """RUCAIBox/POPE: no, if a piece of the first sentence is a negation; yes for everything else."""
    pieces = text.partition(".")[0].replace(",", "").split(" ")
    return "yes" if {"No", "not", "no"}.isdisjoint(pieces) else "no"


@register_parser("opera")
def opera(text: str, target: Verdict) -> Verdict:
    """shikiw/OPERA: as the official one, over all sentences, with contractions."""
    pieces = text.replace(".", "").replace(",", "").split(" ")
    negated = any(piece in {"No", "not", "no", "NO"} or piece.endswith("n't") for piece in pieces)
    return "no" if negated else "yes"


@register_parser("vcd")
def vcd(text: str, target: Verdict) -> Verdict:
    """DAMO-NLP-SG/VCD: looks for the right answer as a substring, so it depends on what is right."""
    other: Verdict = "no" if target == "yes" else "yes"
    return target if target in text.lower() else other


@register_parser("lmms_eval")
def lmms_eval(text: str, target: Verdict) -> Verdict | None:
    """EvolvingLMMs-Lab/lmms-eval: the whole answer has to be the word."""
    return exactly(text.lower().strip())


@register_parser("vlmevalkit")
def vlmevalkit(text: str, target: Verdict) -> Verdict | None:
    """open-compass/VLMEvalKit: one of the two words, and not the other."""
    lowered = text.lower()
    deleting = re.search(r"\d,\d", lowered) is not None
    cleaned = lowered
    for mark in _SPLITTING:
        apart = deleting or f"{mark} " in lowered or f" {mark}" in lowered
        cleaned = cleaned.replace(mark, "" if apart else " ")
    words = re.sub(r"(?<!\d)\.(?!\d)", "", cleaned).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "yes" if "yes" in words else "no"


@register_parser("mme")
def mme(text: str, target: Verdict) -> Verdict | None:
    """MME's rule (arXiv 2306.13394): the word, its first letter, or the word within four characters."""
    cleaned = text.lower().strip().replace(".", "")
    whole = exactly({"y": "yes", "n": "no"}.get(cleaned, cleaned))
    if whole is not None:
        return whole
    start = cleaned[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else None


register_parser("strict")(strict)


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


def asked_object(question: str) -> str | None:
    """The object in a question of the form "Is there a dog in the image?"; None for other forms."""
    found = re.search(r"\bis there (?:an?|the) (.+?) in the \w+\?", question, re.IGNORECASE)
    return found[1].lower() if found else None
