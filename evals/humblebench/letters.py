"""Rules that read the letter of an option in an answer (HumbleBench, arXiv 2509.09658)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

LetterParser = Callable[[str, Mapping[str, str]], str | None]
"""From an answer, and the texts of the options by letter, to a letter; None is unparsed."""

# What may stand before the letter.
_BEFORE = r"""(?:[\s"'“”‘’()\[\]{}*:]|(?i:the\s+answer\s+is|answer\s+is|answer|option)(?!\w))*"""  # noqa: RUF001
_START = re.compile(rf"{_BEFORE}(?P<letter>[A-E])(?!\w)(?P<rest>.*)", re.DOTALL)

# "A" before another word is the article, but not before these words, which no noun phrase begins with.
_ARTICLE = re.compile(r"\s+(?!(?:or|and|is|because|since|as|but)\b)[^\W\d_]", re.IGNORECASE)


def letter_set(text: str, options: Mapping[str, str]) -> str | None:
    """The official rule: the only letter among the words of the answer, in any case.

    It takes the article "a" for option A.
    """
    found = set(re.findall(r"\w+", text.lower())) & set("abcde")
    return found.pop().upper() if len(found) == 1 else None


def letter_first(text: str, options: Mapping[str, str]) -> str | None:
    """The letter with which the answer begins, else that of the only option whose text is in the answer.

    Before the letter there may be quotes, brackets, asterisks, or words such as "the answer is". A small
    letter counts only alone, and an "A" that is the article not at all.
    """
    answer = text.strip()
    if len(answer) == 1 and answer.upper() in "ABCDE":
        return answer.upper()
    found = _START.match(answer)
    if found and not (found["letter"] == "A" and _ARTICLE.match(found["rest"])):
        return found["letter"]
    folded = answer.casefold()
    named = [letter for letter, option in options.items() if option and option.casefold() in folded]
    return named[0] if len(named) == 1 else None


PARSERS: dict[str, LetterParser] = {"letter_first": letter_first, "letter_set": letter_set}
"""The default first; `letter_set` is the official one."""
