"""What the script of the page shows: the maps and numbers of each word."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmfix.explanation.answers import ExplainedAnswer
from vlmfix.explanation.arrays import ExplanationArrays
from vlmfix.explanation.export import packed
from vlmfix.explanation.formulas import IMAGE, SINKS

_MAP_CELLS = 500_000  # cells of the maps of one kind that the page has room for
_LAYERED = 24  # words that bring a map of every layer along
_MASK_SIDE = 160  # pixels of the outline of an object, at most
_HEAD_CELLS = 1_000_000  # cells of all heads that the page has room for


def page_data(explanation: ExplanationArrays) -> dict[str, Any]:
    """What the script shows: a map of each word, and its numbers."""
    import matplotlib

    plain, cells = explanation.plain, explanation.cells
    colours = {
        name: [matplotlib.colors.to_hex(each) for each in matplotlib.colormaps[name](np.linspace(0, 1, 33))]
        for name in ("viridis", "RdBu_r")
    }

    room = max(1, _MAP_CELLS // math.prod(cells.shape))

    def of_answer(told: ExplainedAnswer, names: Sequence[str]) -> dict[str, list[Any]]:
        """Maps of the words; None for those that a long answer has no room for, function words first."""
        places = sorted(range(len(told.words)), key=lambda place: not told.words[place].is_content)[:room]
        own = None if told is plain else told
        return {
            name: [
                packed(cells.of_tokens(explanation.values(name, place, answer=own)))
                if place in places or (told is plain and place == explanation.word)
                else None
                for place in range(len(told.words))
            ]
            for name in names
        }

    maps = of_answer(plain, [name for name in explanation.maps if name != "encoder"])
    if explanation.encoder is not None:
        maps["encoder"] = [packed(cells.of_tokens(explanation.encoder))]
    compared = explanation.compared
    if compared is not None and compared.attention is not None:
        maps["difference"] = [
            packed(cells.of_tokens(explanation.difference(place))) if maps["band"][place] else None
            for place in range(len(plain.words))
        ]
    answers = [{"maps": maps, "words": _numbers(explanation, plain)}]
    if explanation.method is not None:
        under = explanation.method
        own = of_answer(under, ["band"]) if under.attention is not None else {}
        answers.append({"maps": own, "words": _numbers(explanation, under)})
    layered = {
        place: [
            packed(cells.of_tokens(each))
            for each in plain.attention[:, list(plain.words[place].tokens)].mean(axis=1)
        ]
        for place in shown(explanation, _LAYERED)
        if plain.attention is not None
    }
    heads: dict[int, Any] = {}
    if plain.by_head is not None:
        size = plain.by_head.shape[0] * plain.by_head.shape[1] * math.prod(cells.shape)
        places = shown(explanation, max(1, _HEAD_CELLS // size)) if explanation.has_heads else []
        for place, of_word in zip(places, explanation.heads(*places), strict=True):
            heads[place] = [[packed(cells.of_tokens(each)) for each in layer] for layer in of_word]
    left, top, right, bottom = cells.box
    width, height = explanation.picture.size
    return {
        "answers": answers,
        "box": [left / width, top / height, right / width, bottom / height],
        "cells": cells.shape,
        "colours": colours,
        "heads": heads,
        "layered": layered,
        "layers": explanation.layers,
        "masks": _masks(explanation),
        "sinks": cells.of_tokens(_band_sinks(explanation)).round().astype(int).ravel(),
        "word": explanation.word,
    }


def _masks(explanation: ExplanationArrays) -> list[dict[int, Any]]:
    """Of each answer, by word, where the object that it names is in the picture."""
    found = []
    for told in (explanation.plain, explanation.method):
        own: dict[int, Any] = {}
        for named in () if told is None else told.named or ():
            mask = explanation.masks.get(named.category)
            if mask is not None:
                height, width = mask.shape
                step = max(1, math.ceil(max(height, width) / _MASK_SIDE))
                small = mask[::step, ::step]
                bits = base64.b64encode(np.packbits(small).tobytes()).decode()
                own |= {word: {"bits": bits, "columns": small.shape[1]} for word in named.words}
        found.append(own)
    return found


def _band_sinks(explanation: ExplanationArrays) -> np.ndarray:
    """1.0 for image tokens that are sinks in any layer of the band, `(image tokens,)`."""
    own = [place for place, layer in enumerate(explanation.layers) if layer in explanation.band]
    found: np.ndarray = explanation.sinks.is_sink[own].astype(np.float64).max(axis=0)
    return found


def _numbers(explanation: ExplanationArrays, told: ExplainedAnswer) -> list[dict[str, Any]]:
    """The numbers of each word of an answer."""
    compared, found = explanation.compared, []
    for word in told.words:
        tokens = list(word.tokens)
        own: dict[str, Any] = {
            "text": word.text,
            "content": word.is_content,
            "log p": told.log_p[tokens].sum(),
            "entropy": told.entropy[tokens].mean(),
            "margin": told.margin[tokens].min(),
        }
        if told.image_gain is not None:
            own["image gain"] = told.image_gain[tokens].sum()
        if told.shares is not None:
            own["image share"] = told.shares[tokens][:, [IMAGE, SINKS]].sum(axis=1).mean()
        if told is explanation.plain:
            own["cuts"] = {rule: change[tokens].sum() for rule, change in explanation.cuts.items()}
            if compared is not None:
                own["KL to the method"] = compared.divergence[tokens].sum()
                own["log p under the method"] = compared.plain_under_method[tokens].sum()
        elif compared is not None:
            own["log p without the method"] = compared.method_under_plain[tokens].sum()
        found.append(own)
    return found


def shown(explanation: ExplanationArrays, most: int) -> list[int]:
    """Numbers of content words in order, the explained one and those that the image gives most to, `most` in
    all."""
    plain = explanation.plain
    places = [
        place for place, word in enumerate(plain.words) if word.is_content and place != explanation.word
    ]
    gains = plain.log_p if plain.image_gain is None else plain.image_gain
    best = sorted(places, key=lambda place: (-plain.of_word(gains, place), place))[: most - 1]
    return sorted([*best, explanation.word])
