"""Named parsers that read a yes or a no in an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Verdict = Literal["yes", "no"]
Parser = Callable[[str, Verdict], Verdict | None]
"""What reads an answer, given the right one; None is unparsed."""

_DECISIVE = {"yes": "yes", "no": "no", "not": "no", "nope": "no", "cannot": "no"}
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032\uff07\u00b4`", "'"))


def strict(text: str, target: Verdict) -> Verdict | None:
    """The first word among yes, no, not, nope, cannot and contractions in n't decides; words have letters of
    any script, and apostrophes may be typographic."""
    for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower().translate(_APOSTROPHES)):
        decided = "no" if word.endswith("n't") else _DECISIVE.get(word)
        if decided is not None:
            return exactly(decided)
    return None


def exactly(text: str) -> Verdict | None:
    """The word itself."""
    if text == "yes":
        return "yes"
    return "no" if text == "no" else None


PARSERS: dict[str, Parser] = {}
"""Rules that read an answer, by name: `PARSERS["strict"](text, target)`; None is unparsed."""

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


def chosen_parsers(names: Sequence[str], parsers: Mapping[str, Parser]) -> list[str]:
    """The parsers that a command names, each once; "all" is all of them.

    Raises:
        ValueError: there is no parser of a name.
    """
    for name in names:
        if name not in (*parsers, "all"):
            raise ValueError(f"unknown parser {name!r}; choose from {', '.join(parsers)}, or all")
    return list(parsers) if "all" in names else list(dict.fromkeys(names))


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
