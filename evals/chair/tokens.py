"""Sentences and words of captions, as NLTK's `word_tokenize` cuts them, without its data."""

from __future__ import annotations

import re

_CLOSING = r"\"'\])}»”’“‘«"  # noqa: RUF001
_AFTER_END = rf"[{_CLOSING}({{\[;:*@?!\s]"
_SENTENCE_END = re.compile(
    rf"[.!?](?={_AFTER_END})(?!\S*[.!?]{_AFTER_END})(?:\s*[{_CLOSING}]+(?=\s|--|$))?(\s*)"
)
_FINAL_DOT = re.compile(rf"(?<!\.)\.(?=[{_CLOSING}>\s]*$)")
_OPENING_APOSTROPHE = re.compile(r"(?<!\w)'(?=\w)(?!(?:re|ve|ll|[mtsdn])\b)")
_ALONE = re.compile(
    r"[;@#$%&?!*\[\](){}<>\"«»“”„‘’\u2012-\u2015]|`+|''|--|\.{2,}|[,:](?!\d)"  # noqa: RUF001
)
_CLOSING_APOSTROPHE = re.compile(r"(?<=[^'\s])'(?=\s|$)")
_CLITIC = re.compile(r"(?<=[^'\s])(?:'(?:s|m|d|ll|re|ve)|n't)(?=\s|$)")
_CANNOT = re.compile(r"\bcannot\b")


def tokenize(caption: str) -> list[str]:
    """The words and marks of a caption in lower case.

    A sentence ends at a full stop, exclamation or question mark before white space, quotes, brackets or
    other marks, the closing ones included. Only its final dot is a token of its own: `cat.the` is one.
    """
    return [token for sentence in tokens_of_sentences(caption) for token in sentence]


def tokens_of_sentences(caption: str) -> list[list[str]]:
    """The same, sentence by sentence."""
    found = []
    for sentence in sentences(caption.lower()):
        text = _OPENING_APOSTROPHE.sub("' ", sentence)
        text = _FINAL_DOT.sub(" . ", text)
        text = _ALONE.sub(r" \g<0> ", text)
        text = _CLOSING_APOSTROPHE.sub(" ' ", text)
        text = _CLITIC.sub(r" \g<0>", text)
        found.append(_CANNOT.sub(" can not ", text).split())
    return found


def token_starts(caption: str) -> list[int]:
    """Where in the caption each of its tokens begins."""
    text, starts, end = caption.lower(), [], 0
    for token in tokenize(caption):
        starts.append(text.index(token, end))
        end = starts[-1] + len(token)
    return starts


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them."""
    found, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        found.append(text[start : end.start(1)])
        start = end.end()
    return [*found, text[start:]]
