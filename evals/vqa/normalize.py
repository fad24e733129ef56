"""Normal forms of short answers, as the scorers of VQA (arXiv 1505.00468) and TextVQA make them."""

from __future__ import annotations

import re
from functools import lru_cache

OFFICIAL_DOTS = 32
"""How many dots the official code deletes: a flag stands where a count belongs."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FREE_DOT = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
    how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't
    shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd
    something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're
    why's won't would've wouldn't y'all you'd you'll you're you've
"""
_TWO_APOSTROPHES = """
    couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""
_ODD = {
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
}


def _with_one_missing(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


CONTRACTIONS: dict[str, str] = {
    key: word
    for word in (*_ONE_APOSTROPHE.split(), *_TWO_APOSTROPHES.split())
    for key in _with_one_missing(word)
} | _ODD
"""Words that lack an apostrophe, with their repaired form. Keys with capitals never match."""


def on_one_line(answer: str) -> str:
    """The answer with line ends and tabs as spaces, stripped."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def without_marks(answer: str, *, dots: int = 0) -> str:
    """The answer without punctuation; apostrophes and colons stay.

    A mark with a space beside it somewhere is deleted, another one becomes a space. If there is a digit,
    comma and digit somewhere, all marks are deleted.

    Args:
        answer: text.
        dots: how many dots without a digit after them are deleted at most; 0 is all.
    """
    deleting = _DIGIT_COMMA_DIGIT.search(answer) is not None
    cleaned = answer
    for mark in _MARKS:
        apart = deleting or f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if apart else " ")
    return _FREE_DOT.sub("", cleaned, count=dots)


def common_words(answer: str) -> str:
    """The answer in lower case with number words as digits, without articles, contractions repaired."""
    numbered = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)


@lru_cache(maxsize=65536)
def normalized(answer: str, *, dots: int = 0) -> str:
    """All three steps; `dots` as in `without_marks`."""
    return common_words(without_marks(on_one_line(answer), dots=dots))


def m4c_normalized(answer: str) -> str:
    """The steps of TextVQA's evaluator (EvalAI, M4C), which drops commas before it looks at numbers."""
    task_plan = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalized(task_plan, dots=OFFICIAL_DOTS)


def gqa_normalized(text: str) -> str:
    """An answer as LLaVA compares it on GQA (arXiv 1902.09506): lower case, without a final dot."""
    return text.strip().lower().removesuffix(".")
