"""Words of an answer, and the tokens that write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import ProcessorMixin

from vlmfix.inference.chat import text_and_spans
from vlmfix.inference.keywords import content_words

END = "(end)"
"""Stands for tokens without text, such as the one that ends an answer."""


class Word(NamedTuple):
    """A word or mark of an answer.

    Args:
        text: as it is written.
        start: place of its first character in the answer, and `stop` that after its last.
        tokens: numbers of the tokens that write it.
        is_content: whether it is a word and no English function word.
    """

    text: str
    start: int
    stop: int
    tokens: tuple[int, ...]
    is_content: bool


def read_words(token_ids: Sequence[int], processor: ProcessorMixin) -> tuple[str, list[Word]]:
    """The text of an answer without special tokens, and its words in order; each token belongs to one."""
    text, spans = text_and_spans(token_ids, processor, skip_special_tokens=True)
    pieces = [match.span() for match in re.finditer(r"\w+(?:['\u2019-]\w+)*|[^\w\s]+", text)]
    owners: list[list[int]] = [[] for _ in pieces]
    after: dict[int, list[int]] = {}
    number = 0
    for token, (start, stop) in enumerate(spans):
        while number < len(pieces) and pieces[number][1] <= start:
            number += 1
        if number == len(pieces) or (stop > start and stop <= pieces[number][0]):
            after.setdefault(number, []).append(token)  # a special token, or white space alone
        else:
            owners[number].append(token)
    content = set(content_words(text))
    words = []
    for place, ((start, stop), tokens) in enumerate(zip(pieces, owners, strict=True)):
        words += [Word(END, start, start, (each,), False) for each in after.get(place, ())]
        if tokens:
            is_content = any(start < end and begin < stop for begin, end in content)
            words.append(Word(text[start:stop], start, stop, tuple(tokens), is_content))
        elif words:  # a mark that shares its token with the word before it
            before = words[-1]
            words[-1] = before._replace(text=text[before.start : stop], stop=stop)
    words += [Word(END, len(text), len(text), (each,), False) for each in after.get(len(pieces), ())]
    return text, words


def find_word(words: Sequence[Word], asked: str) -> int:
    """The number of a word: itself, its second mention as `word#2`, or the index of one of its tokens.

    Raises:
        ValueError: the answer has no such word; the message lists its words.
    """
    if asked.isascii() and asked.isdigit():
        found = [place for place, word in enumerate(words) if int(asked) in word.tokens]
        if not found:
            raise ValueError(
                f"the answer has no token {asked}; it has {_tokens(words)}, 0 to {_tokens(words) - 1}"
            )
        return found[0]
    name, _, mention = asked.partition("#")
    places = [place for place, word in enumerate(words) if word.text.lower() == name.strip().lower()]
    number = int(mention) if mention.isascii() and mention.isdigit() else 1
    if (mention and not mention.isdigit()) or not 1 <= number <= len(places):
        listed = ", ".join(dict.fromkeys(word.text for word in words if word.is_content)) or "none"
        raise ValueError(f"the answer has no word {asked!r}; its content words are {listed}")
    return places[number - 1]


def _tokens(words: Sequence[Word]) -> int:
    return sum(len(word.tokens) for word in words)


def answer_tokens(text: str, prompt: str, processor: ProcessorMixin) -> tuple[int, ...]:
    """A given answer as the tokens that follow a prompt.

    Args:
        prompt: as the model reads it.

    Raises:
        ValueError: the answer is empty or has no words, or the tokenizer does not give it back.
    """
    if not re.search(r"\w", text):
        raise ValueError(f"the answer is {text!r}, which has no words; give an answer with a word to explain")
    tokenizer = processor.tokenizer

    def ids(written: str) -> list[int]:
        found: list[int] = tokenizer(written, add_special_tokens=False)["input_ids"]
        return found

    tail = prompt.rstrip()[-12:] + prompt[len(prompt.rstrip()) :]  # what joins with a space behind it
    joined = "" if prompt[-1:].isspace() else " "
    before, both = ids(tail), ids(tail + joined + text.strip())
    found = both[len(before) :] if both[: len(before)] == before else ids(joined + text.strip())
    back = processor.batch_decode([found], skip_special_tokens=True)[0]
    if back.strip() != text.strip():
        raise ValueError(
            f"the tokenizer gives {back.strip()!r} back for the answer {text.strip()!r}; write it without "
            "what it does not know"
        )
    return tuple(found)
