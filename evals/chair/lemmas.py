"""Lemmas by part of speech, as in the second family of CHAIR scorers; NLTK and its data are optional."""

from __future__ import annotations

import importlib
from typing import Any

REMEDY = (
    "install nltk and its data (nltk.download: averaged_perceptron_tagger_eng, wordnet), "
    "or choose the variant official or corrected"
)

_WORDNET_POS = {"J": "a", "V": "v", "N": "n", "R": "r"}


class Lemmatizer:
    """Tokens of a caption to their WordNet lemmas.

    The part of speech is tagged over the whole caption; what WordNet has no part for is taken as a noun.

    Raises:
        ImportError: if NLTK or its data are missing.
    """

    def __init__(self) -> None:
        try:
            self._nltk: Any = importlib.import_module("nltk")
            self._lemmatize = importlib.import_module("nltk.stem").WordNetLemmatizer().lemmatize
            self(["dogs", "run"])
        except ImportError as error:
            raise ImportError(f"the variant lemma needs the package nltk; {REMEDY}") from error
        except LookupError as error:
            raise ImportError(f"the variant lemma needs data that NLTK does not find; {REMEDY}") from error

    def __call__(self, tokens: list[str]) -> list[str]:
        """The lemma of each token."""
        return [
            self._lemmatize(token, pos=_WORDNET_POS.get(tag[:1], "n"))
            for token, tag in self._nltk.pos_tag(tokens)
        ]
