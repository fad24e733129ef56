"""Nouns of a text and similarity of words: by spaCy, or by plain lookup in the words of synthetic scenes."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np

MODEL = "en_core_web_lg"


class Language(Protocol):
    """What the scorer has to know about English."""

    @property
    def name(self) -> str:
        """Tagger, lemmatiser and vectors with their versions, as a record keeps them."""

    def nouns(self, text: str) -> list[str]:
        """The nouns of a text in order, with repeats, as singulars in their own case."""

    def similarity(self, one: str, other: str) -> float:
        """The cosine of the vectors of two words, 0.0 where one has none."""


class Spacy:
    """Tags, lemmas and vectors of spaCy's large English model.

    Raises:
        ImportError: spaCy or the model is not installed.
    """

    def __init__(self) -> None:
        if any(importlib.util.find_spec(package) is None for package in ("spacy", MODEL)):
            raise ImportError(
                f"the descriptions of AMBER need spaCy with {MODEL}; pip install 'vlmfix[amber]', then "
                f"'python -m spacy download {MODEL}'"
            )
        spacy: Any = importlib.import_module("spacy")
        self._pipeline: Any = spacy.load(MODEL, exclude=["ner", "parser"])
        self._version = spacy.__version__
        self._nouns: dict[str, list[str]] = {}
        self._vectors: dict[str, np.ndarray] = {}

    @property
    def name(self) -> str:
        """See `Language`."""
        return f"spaCy {self._version} with {MODEL} {self._pipeline.meta['version']}"

    def nouns(self, text: str) -> list[str]:
        """See `Language`."""
        if text not in self._nouns:
            tagged = [token for token in self._pipeline(text) if token.tag_.startswith("NN")]
            self._nouns[text] = [_in_case(token.lemma_, token.text) for token in tagged]
        return self._nouns[text]

    def similarity(self, one: str, other: str) -> float:
        """See `Language`."""
        first, second = self._unit_vector(one), self._unit_vector(other)
        return float(first @ second)

    def _unit_vector(self, word: str) -> np.ndarray:
        """The mean of the vectors of its tokens, of length 1; zeros where there are none."""
        if word not in self._vectors:
            vector = np.asarray(self._pipeline.make_doc(word).vector, dtype=float)
            self._vectors[word] = vector / (np.linalg.norm(vector) or 1.0)
        return self._vectors[word]


class Lookup:
    """Nouns that are looked up in a list, without a tagger; no two of them are alike.

    Args:
        singulars: by every form that counts.
        name: of the list.
    """

    def __init__(self, singulars: Mapping[str, str], name: str) -> None:
        self.name = f"plain lookup in {name}, no tagger and no vectors"
        self._singulars = singulars
        forms = "|".join(map(re.escape, sorted(singulars, key=len, reverse=True)))
        self._pattern = re.compile(rf"\b(?:{forms})\b")

    def nouns(self, text: str) -> list[str]:
        """See `Language`."""
        return [self._singulars[form] for form in self._pattern.findall(text.lower())]

    def similarity(self, one: str, other: str) -> float:
        """See `Language`."""
        return float(one == other)


@cache
def spacy_language() -> Language:
    """spaCy's model, loaded once, as it takes seconds.

    Raises:
        ImportError: see `Spacy`.
    """
    return Spacy()


def _in_case(lemma: str, text: str) -> str:
    """The lemma with the first letter of the text: AMBER keeps the case, and its vocabulary is lower case."""
    return lemma[:1].upper() + lemma[1:] if text[:1].isupper() else lemma
