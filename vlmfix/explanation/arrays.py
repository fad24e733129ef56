"""What an explanation holds, as arrays, and the maps made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmfix.explanation.answers import Compared, ExplainedAnswer
from vlmfix.explanation.cells import Cells
from vlmfix.explanation.faithfulness import Faithfulness
from vlmfix.explanation.findings import Finding
from vlmfix.explanation.formulas import phrase_map
from vlmfix.explanation.judging import Figure
from vlmfix.explanation.rollout import contrast
from vlmfix.explanation.words import find_word

MAPS = ("band", "rollout", "contrast", "encoder")
"""Maps of a word: attention of the layers at 25 to 50 % of the depth, without sinks; the rollout of the upper
half; what it has beyond that of a question about the background; and the vision encoder's own attention,
which is the same for all words."""


@dataclass(frozen=True, eq=False)
class Sinks:
    """Sinks layer by layer.

    Args:
        threshold: above which an image token is a visual sink.
        dimensions: that mark sinks; None: not calibrated, all of them were looked at.
        scores: of the image tokens, `(layers, image tokens)`.
        sizes: RMS-normalised sizes of the first token, `(layers, hidden)`.
        first_norm: L2 norm of the residual stream there, and `image_norm`, the median of the image tokens,
            `(layers,)` each.
    """

    threshold: float
    dimensions: tuple[int, ...] | None
    scores: np.ndarray
    sizes: np.ndarray
    first_norm: np.ndarray
    image_norm: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Largest size of the first token, `(layers,)`."""
        found: np.ndarray = self.sizes.max(axis=1)
        return found

    @property
    def dimension(self) -> np.ndarray:
        """Where that is, `(layers,)` int64."""
        found: np.ndarray = self.sizes.argmax(axis=1)
        return found

    @property
    def is_sink(self) -> np.ndarray:
        """Which image tokens are visual sinks, `(layers, image tokens)` bool."""
        found: np.ndarray = self.scores > self.threshold
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class ExplanationArrays:
    """What `vlmfix.explain` found out about an answer, as arrays, and maps made of them.

    All arrays are of numpy, in the order of tokens, layers, heads and image
    tokens; logarithms are natural.

    Args:
        model: what it is called.
        prompt: what was asked.
        picture: in RGB.
        cells: where its image tokens lie.
        layers: numbers of the layers that attend, in the order of the arrays.
        band: of these, the ones whose attention makes the band map.
        plain: the answer without a method.
        method: the answer under the method; None: there is none.
        method_name: what it is called, and `parameters` its values, by method.
        compared: both answers side by side; None: see `left_out`.
        word: number of the word of the plain answer that is explained in full.
        cuts: how far the log probability of each token moves under the rules of `knockout.RULES`, by rule.
        sliding: the same with the image cut from all text in a window of layers, `(starts, tokens)`.
        window: its number of layers.
        sinks: layer by layer.
        divergence: of each head from the prompt without the image (VHD), `(layers, heads)`.
        background: rollout of the question about the background, `(image tokens,)`.
        encoder: attention inside the vision encoder, `(image tokens,)`.
        head_effects: how far the probability of each of `plain.named` falls without the hallucination heads
            of the profile, and without random ones of the same layers, `(named, 1 + draws)`.
        masks: of the objects in the picture, by category.
        judged: figures of maps of words that name objects in the picture, by word and map.
        faithfulness: of the maps of `word`.
        findings: what the picture says of the values of the profile.
        activity: what the method did, by method.
        left_out: what this model or method does not let be seen, with the reason.
    """

    model: str
    prompt: str
    picture: Image.Image
    cells: Cells
    layers: tuple[int, ...]
    band: tuple[int, ...]
    plain: ExplainedAnswer
    word: int
    sinks: Sinks
    method: ExplainedAnswer | None = None
    method_name: str = ""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    compared: Compared | None = None
    cuts: Mapping[str, np.ndarray] = field(default_factory=dict)
    sliding: np.ndarray | None = None
    window: int = 1
    divergence: np.ndarray | None = None
    background: np.ndarray | None = None
    encoder: np.ndarray | None = None
    head_effects: np.ndarray | None = None
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    judged: Mapping[int, Mapping[str, Mapping[str, Figure]]] = field(default_factory=dict)
    faithfulness: Faithfulness | None = None
    findings: Sequence[Finding] = ()
    activity: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    _heads_at: Callable[[Sequence[Sequence[int]]], list[np.ndarray]] | None = field(default=None, repr=False)
    _heads: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def maps(self) -> tuple[str, ...]:
        """Those of `MAPS` that there are."""
        missing = {
            "rollout": self.plain.rollout is None,
            "contrast": self.plain.rollout is None or self.background is None,
            "encoder": self.encoder is None,
        }
        return tuple(name for name in MAPS if not missing.get(name, False))

    def find(self, word: str | int) -> int:
        """The number of a word of the plain answer: itself, a word, its second mention as `word#2`, or the
        index of a token as text.

        Raises:
            ValueError: there is no such word; the message lists the words.
        """
        if isinstance(word, str):
            return find_word(self.plain.words, word)
        if not 0 <= word < len(self.plain.words):
            raise ValueError(f"word is {word}; it must be a number from 0 to {len(self.plain.words) - 1}")
        return word

    def values(self, name: str, word: str | int, *, answer: ExplainedAnswer | None = None) -> np.ndarray:
        """A map of a word over the image tokens, `(image tokens,)`, the mean over its tokens.

        Args:
            name: one of `maps`.
            word: see `find`.
            answer: whose word it is; None: of the plain answer.

        Raises:
            ValueError: there is no such map or word.
        """
        if name not in self.maps:
            reason = self.left_out.get("rollout" if name == "contrast" else name, "")
            raise ValueError(
                f"there is no map {name!r}{f' ({reason})' if reason else ''}; use {', '.join(self.maps)}"
            )
        if name == "encoder":
            assert self.encoder is not None
            return self.encoder
        told = self.plain if answer is None else answer
        tokens = list(told.words[self.find(word) if answer is None else int(word)].tokens)
        if name == "band":
            assert told.attention is not None
            band: np.ndarray = self.band_map(told.attention)[tokens].mean(axis=0)
            return band
        assert told.rollout is not None
        rolled: np.ndarray = told.rollout[tokens].mean(axis=0)
        if name == "rollout":
            return rolled
        assert self.background is not None
        return contrast(self.cells.smoothed(rolled), self.cells.smoothed(self.background))

    def band_map(self, attention: np.ndarray) -> np.ndarray:
        """The band map of every token, `(tokens, image tokens)`: mean of the layers, sinks being 0."""
        own = [place for place, layer in enumerate(self.layers) if layer in self.band]
        free: np.ndarray = (attention[own] * ~self.sinks.is_sink[own][:, None]).mean(axis=0)
        return free

    def difference(self, word: str | int) -> np.ndarray:
        """The band map of a word of the plain answer under the method less that without it, after the same
        words before it, both scaled to sum 1; `(image tokens,)`.

        Raises:
            ValueError: there is no method, or its attention is not known.
        """
        if self.compared is None or self.compared.attention is None:
            raise ValueError("there is no attention under a method to compare with; explain with a method")
        tokens = list(self.plain.words[self.find(word)].tokens)
        under = self.band_map(self.compared.attention)[tokens].mean(axis=0)
        plain = self.values("band", word)
        changed: np.ndarray = under / max(under.sum(), 1e-12) - plain / max(plain.sum(), 1e-12)
        return changed

    def saliency(self, name: str, *words: str | int) -> np.ndarray:
        """A map of a word or a phrase in pixels, `(height, width)`, NaN where no token sees the picture.

        Of several words, those count that are no function words, see `formulas.phrase_map`.
        """
        places = [self.find(word) for word in words]
        maps = torch.from_numpy(np.stack([self.values(name, place) for place in places]))
        content = [self.plain.words[place].is_content for place in places]
        return self.cells.pixels(phrase_map(maps, content).numpy())

    @property
    def has_heads(self) -> bool:
        """Whether `heads` can be made: the model is at hand."""
        return self._heads_at is not None

    def heads(self, *words: str | int) -> list[np.ndarray]:
        """Attention of each head to the image in the rows that write words, mean of the rows of each,
        `(layers, heads, image tokens)`; made in one pass when it is first asked for, and kept.

        Raises:
            ValueError: there is no such word, or the model is gone.
        """
        wanted = [self.plain.words[self.find(word)].tokens for word in words]
        missing = [tokens for tokens in dict.fromkeys(wanted) if tokens not in self._heads]
        if missing:
            if self._heads_at is None:
                raise ValueError("the model is not at hand any more; explain the answer anew")
            self._heads.update(zip(missing, self._heads_at(missing), strict=True))
        return [self._heads[tokens] for tokens in wanted]
