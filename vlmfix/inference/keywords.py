"""The informative words of a question: by spaCy where it is installed, else all but function words."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

Spans = Sequence[tuple[int, int]]
"""Character ranges of words in a question."""

CONTENT_TAGS = ("NOUN", "PROPN", "VERB", "ADJ", "ADV", "NUM")
SPACY_MODEL = "en_core_web_sm"

# Function words of English; what is left of a question are the words that tell what it is about.
_STOP_WORDS = frozenset(
    """
    a an the this that these those it its he she they them their his her hers him i me my mine we us our you
    your who whom whose which what where when why how is are was were be been being am do does did doing done
    has have had having can could will would shall should may might must and or but nor not no yes if then
    than as at by for from in into of off on onto out over to up with without within about above across after
    against along among around before behind below beneath beside between beyond during inside near outside
    through toward towards under until upon via there here so such some any each every either neither both all
    also too very just only please
    """.split()  # noqa: SIM905
)

_AUXILIARIES = frozenset(
    """
    is are was were am do does did has have had can could will would shall should may might must isn't aren't
    wasn't weren't don't doesn't didn't hasn't haven't hadn't can't couldn't won't wouldn't shouldn't
    """.split()  # noqa: SIM905
)


def keyword_extractor(tags: Sequence[str]) -> tuple[Callable[[str], Spans], str]:
    """What finds the informative words of a question here, and its name for reports."""
    if _spacy() is not None:
        return lambda text: spacy_words(text, tags), f"spaCy {SPACY_MODEL}"
    return content_words, "words without function words"


def content_words(text: str) -> Spans:
    """Character spans of all words that are no English function words."""
    return [
        match.span()
        for match in re.finditer(r"\w+(?:['\u2019]\w+)*", text)
        if match.group().lower() not in _STOP_WORDS
    ]


def asks_yes_or_no(text: str) -> bool:
    """Whether an English question wants a yes or no: it says so, or one of its sentences that ends with a
    question mark begins with an auxiliary verb ("Can you ...?" is a request)."""
    if re.search(r"\byes\W+(or\W+)?no\b", text, re.IGNORECASE):
        return True
    for sentence in re.findall(r"[^.!?\n]+\?", text):
        words = sentence.lower().replace("\u2019", "'").split()
        if words[0] in _AUXILIARIES and words[1:2] != ["you"]:
            return True
    return False


def spacy_words(text: str, tags: Sequence[str] = CONTENT_TAGS) -> Spans:
    """Character spans of words with one of the universal part-of-speech tags, by spaCy.

    Raises:
        ImportError: spaCy or its English model is not installed.
    """
    tagger = _spacy()
    if tagger is None:
        raise ImportError(
            f"spaCy with {SPACY_MODEL} is not installed; pip install 'vlmfix[gift]', then "
            f"'python -m spacy download {SPACY_MODEL}'"
        )
    return [(token.idx, token.idx + len(token)) for token in tagger(text) if token.pos_ in tags]


@cache
def _spacy() -> Any:
    """spaCy's English tagger, loaded once; None where it is not installed."""
    if importlib.util.find_spec("spacy") is None or importlib.util.find_spec(SPACY_MODEL) is None:
        return None
    import spacy

    return spacy.load(SPACY_MODEL, exclude=["ner", "parser"])
