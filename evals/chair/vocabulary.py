"""Words of a caption that are COCO objects (arXiv 1809.02156, LisaAnne/Hallucination)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vlmfix.evaluation.files.readers import read_text, sha256_of

from .lemmas import Lemmatizer
from .plurals import BIGRAMS, singular_forms
from .synonyms import OWN_ENTRIES
from .tokens import tokenize

Variant = Literal["official", "corrected", "lemma"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

OFFICIAL_SHA256 = "b685537b36fe21b791c87151b96a991ceb582edff19f3da204dcc7a7905502f2"
"""Of `data/synonyms.txt` in LisaAnne/Hallucination."""

_NO_WORD = re.compile(r"[,;:|\t\"{}\[\]]")


@dataclass(frozen=True)
class Mention:
    """A word that is an object.

    Args:
        word: entry of the vocabulary.
        category: the class that it belongs to.
        index: position of its first token in the caption.
    """

    word: str
    category: str
    index: int


@dataclass(frozen=True)
class Reading:
    """A caption's objects in order, and its number of tokens, where merged pairs are one."""

    mentions: tuple[Mention, ...]
    tokens: int


def variant_named(name: str) -> Variant:
    """The variant of that name.

    Raises:
        ValueError: if there is none.
    """
    for variant in VARIANTS:
        if name == variant:
            return variant
    raise ValueError(f"unknown variant {name!r}; choose from {', '.join(VARIANTS)}")


class Vocabulary:
    """Words with their classes, and the way in which a caption is searched for them.

    Args:
        entries: for each class its words, the name of the class first. Without them, words of our own
            making, with which figures differ from published ones.
        variant: "official" follows the script of the paper: singular forms by table, errors included
            ("bus" and "ties" are not found). "corrected" fixes these. "lemma" is the second family in
            use (shikiw/OPERA, lmms-eval): lemmas by part of speech, for which it needs NLTK and its data.
        source: where the entries come from, as reports name it.
        sha256: of their file; without it, of the entries themselves.

    Raises:
        ValueError: for an unknown variant, no entries, or a word in two classes.
        ImportError: for "lemma" without NLTK or its data.
    """

    def __init__(
        self,
        entries: Iterable[Sequence[str]] = OWN_ENTRIES,
        variant: str = "official",
        *,
        source: str = "vlmfix",
        sha256: str | None = None,
    ) -> None:
        self.variant = variant_named(variant)
        self.source = source
        lines = [list(words) for words in entries]
        content = "\n".join(", ".join(words) for words in lines)
        self.sha256 = hashlib.sha256(content.encode()).hexdigest() if sha256 is None else sha256
        if self.variant == "corrected":
            lines = [[words[0].strip(), *(word.strip().lower() for word in words)] for words in lines]
        self._classes: dict[str, str] = {}
        for words in lines:
            for word in words:
                self._add(words[0], word)
        if not self._classes:
            raise ValueError("a vocabulary without words finds nothing; give it at least one class")
        self._singular = singular_forms(self._classes, clipped=self.variant == "official")
        self._lemmas = Lemmatizer() if self.variant == "lemma" else None

    @classmethod
    def from_file(cls, path: str | Path, variant: str = "official") -> Vocabulary:
        """The vocabulary of a file in the form of the official list.

        Each line is a class: its name, then its other words, each after a comma and a space.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if a line is not of this form, and as for `Vocabulary`.
        """
        entries = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            words = line.strip().split(", ")
            if any(not word.strip() or _NO_WORD.search(word) for word in words):
                raise ValueError(
                    f"{path}, line {number}: {line.strip()[:40]!r} is not a class and its words; "
                    "put a comma and a space between words"
                )
            entries.append(words)
        return cls(entries, variant, source=str(path), sha256=sha256_of(path))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return tuple(dict.fromkeys(self._classes.values()))

    @property
    def is_official(self) -> bool:
        """Whether it is the list of the paper, byte for byte."""
        return self.sha256 == OFFICIAL_SHA256

    def class_of(self, name: str) -> str | None:
        """The class of a category name or other entry; None if there is none."""
        return self._classes.get(name)

    def read(self, caption: str) -> Reading:
        """Find the objects of a caption and count its tokens."""
        tokens = self._base_forms(tokenize(caption))
        words = list(_merged(tokens))
        named = {word for word, _ in words}
        # the seat of a toilet is no chair
        skipped = {"seat"} if {"toilet", "seat"} <= named else set()
        mentions = (
            Mention(word, self._classes[word], index)
            for word, index in words
            if word in self._classes and word not in skipped
        )
        return Reading(tuple(mentions), len(words))

    def mentions(self, caption: str) -> list[Mention]:
        """The objects of a caption in order, repeated ones included."""
        return list(self.read(caption).mentions)

    def _base_forms(self, tokens: list[str]) -> list[str]:
        if self._lemmas is not None:
            return self._lemmas(tokens)
        return [self._singular.get(token, token) for token in tokens]

    def _add(self, category: str, word: str) -> None:
        other = self._classes.setdefault(word, category)
        if other != category:
            raise ValueError(f"{word!r} is in the classes {other!r} and {category!r}; leave it in one")


def _merged(tokens: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Words with the position of their first token; two neighbours that are one word are merged."""
    index = 0
    while index < len(tokens):
        pair = BIGRAMS.get(" ".join(tokens[index : index + 2]))
        yield (tokens[index] if pair is None else pair), index
        index += 1 if pair is None else 2
