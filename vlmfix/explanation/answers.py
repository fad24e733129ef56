"""Answers as an explanation holds them: one, token by token, and two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmfix.explanation.formulas import Choice
from vlmfix.explanation.words import Word


class Named(NamedTuple):
    """An object that words of an answer name.

    Args:
        words: their numbers.
        category: its class.
        is_present: whether it is in the picture.
    """

    words: tuple[int, ...]
    category: str
    is_present: bool

    @property
    def word(self) -> int:
        """The first of them, at which it is decided."""
        return self.words[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class ExplainedAnswer:
    """One answer, token by token; `(tokens,)` and so on.

    Args:
        label: "greedy", the name of the method, or "given".
        text: without special tokens.
        token_ids: of all its tokens.
        words: with the tokens that write them.
        log_p: log probability of each token in nats, where it was written.
        entropy: of the distribution that it comes from, in nats.
        margin: logit of the token less that of the best other one.
        shares: attention of the band on `formulas.GROUPS`, mean of its layers and heads, `(tokens, 6)`.
        image_gain: what the image adds to `log_p`; None: not known of answers under a method.
        by_head: attention on the same groups, mean of the tokens, `(layers, heads, 6)`.
        image_entropy: of heads inside the image, 0 on one token and 1 if even, likewise, `(layers, heads)`.
        attention: to the image tokens, mean of the heads, `(layers, tokens, image tokens)`; None: under a
            method that shows the model other image tokens.
        rollout: to the image tokens, `(tokens, image tokens)`; None: not known.
        named: the objects that it names; None: nobody has said what is in the picture.
    """

    label: str
    text: str
    token_ids: tuple[int, ...]
    words: Sequence[Word]
    log_p: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray
    shares: np.ndarray | None
    image_gain: np.ndarray | None = None
    by_head: np.ndarray | None = None
    image_entropy: np.ndarray | None = None
    attention: np.ndarray | None = None
    rollout: np.ndarray | None = None
    named: Sequence[Named] | None = None

    def of_word(self, values: np.ndarray, word: int, *, mean: bool = False) -> float:
        """Of values of the tokens, the sum or mean over those of a word."""
        own = values[list(self.words[word].tokens)]
        return float(own.mean() if mean else own.sum())


class Parting(NamedTuple):
    """Where two answers part.

    Args:
        place: of the first token that differs.
        choice: the two tokens, with their margins.
        tokens: the likeliest tokens of either, as text.
        plain: their probabilities without the method, and `method` with it.
    """

    place: int
    choice: Choice
    tokens: tuple[str, ...]
    plain: tuple[float, ...]
    method: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Compared:
    """Both answers, each read plainly and under the method.

    Args:
        parting: None: they are equal, as far as the shorter one goes.
        divergence: KL(method || plain) at each token of the plain answer, in nats, `(tokens,)`.
        plain_under_method: log probability of the plain answer's tokens under the method.
        method_under_plain: log probability of the method's tokens without it.
        attention: of the plain answer under the method, see `ExplainedAnswer.attention`.
    """

    parting: Parting | None
    divergence: np.ndarray
    plain_under_method: np.ndarray
    method_under_plain: np.ndarray
    attention: np.ndarray | None
