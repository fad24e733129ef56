"""Explanations of many annotated pictures, averaged: what paths carry objects that are there, and those that
are not."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmfix.evaluation.analysis.intervals import Linearized, t_estimate
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.explanation.answers import Named
from vlmfix.explanation.evidence import findings
from vlmfix.explanation.findings import Finding
from vlmfix.explanation.formulas import IMAGE, SINKS
from vlmfix.explanation.judging import Figure
from vlmfix.explanation.knockout import RULES
from vlmfix.explanation.result import Explanation

KINDS = ("present", "invented")
"""Objects that answers name, by whether they are in the picture."""
QUANTITIES = ("image gain", "image share", "log p", *RULES)
"""What is averaged over the first tokens of their words; rules are changes of log p when paths are cut."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """What explained answers about annotated pictures have in common.

    Args:
        model: what it is called.
        prompt: what was asked.
        pictures: number of pictures.
        words: number of words that name objects, by kind.
        table: mean of each of `QUANTITIES`, with an interval clustered by picture, by quantity and kind.
        sliding: change of log p with the image cut from all text in a window of layers, mean of the words,
            `(starts,)`, by kind.
        window: layers in the window.
        gain_auc: probability that the image gains a present object more than an invented one, ties half;
            None: one of the kinds is missing.
        judged: figures of maps of present objects, mean of the categories, by map and figure.
        findings: what the pictures say of the values of the profile.
    """

    model: str
    prompt: str
    pictures: int
    words: Mapping[str, int]
    table: Mapping[str, Mapping[str, Estimate]]
    sliding: Mapping[str, np.ndarray]
    window: int
    gain_auc: float | None
    judged: Mapping[str, Mapping[str, Figure]]
    findings: Sequence[Finding]


def survey(explanations: Sequence[Explanation], values: Mapping[str, object]) -> Survey:
    """Average explanations of one model on pictures whose objects are known.

    Args:
        explanations: from `vlmfix.explain` with `objects`; one at least.
        values: of the profile of the model.

    Raises:
        ValueError: there are none, or no answer names an object.
    """
    if not explanations:
        raise ValueError("there is no explained answer to average; give pictures")
    named = {
        kind: [(number, each, own) for number, each in enumerate(explanations) for own in _of(each, kind)]
        for kind in KINDS
    }
    if not any(named.values()):
        raise ValueError(
            f"no answer about {len(explanations)} pictures names an object that annotations know; ask for "
            "a description"
        )
    table: dict[str, dict[str, Estimate]] = {name: {} for name in QUANTITIES}
    gains: dict[str, list[float]] = {}
    sliding = {}
    for kind, words in named.items():
        if not words:
            continue
        numbers = np.array([number for number, _, _ in words])
        for name in QUANTITIES:
            found = np.array([_quantity(each, own, name) for _, each, own in words])
            if np.isfinite(found).all():
                table[name][kind] = _mean(found, numbers, len(explanations))
        gains[kind] = [_quantity(each, own, "image gain") for _, each, own in words]
        curves = [
            each.sliding[:, each.plain.words[own.word].tokens[0]]
            for _, each, own in words
            if each.sliding is not None
        ]
        if curves:
            sliding[kind] = np.mean(curves, axis=0)
    first = explanations[0]
    return Survey(
        model=first.model,
        prompt=first.prompt,
        pictures=len(explanations),
        words={kind: len(words) for kind, words in named.items()},
        table={name: row for name, row in table.items() if row},
        sliding=sliding,
        window=first.window,
        gain_auc=_auc(gains.get("present", []), gains.get("invented", [])),
        judged=_judged(explanations),
        findings=findings(explanations, values),
    )


def light(explanation: Explanation) -> Explanation:
    """An explanation without what no average needs, such as pictures and maps."""
    plain = dataclasses.replace(explanation.plain, attention=None, rollout=None)
    return dataclasses.replace(
        explanation, plain=plain, masks={}, background=None, encoder=None, _heads_at=None, _heads={}
    )


def _of(explanation: Explanation, kind: str) -> Iterable[Named]:
    return (each for each in explanation.plain.named or () if each.is_present == (kind == "present"))


def _quantity(explanation: Explanation, named: Named, name: str) -> float:
    """Of the first token of a word, which is the one that decides for it."""
    plain = explanation.plain
    token = plain.words[named.word].tokens[0]
    if name == "image share":
        return np.nan if plain.shares is None else float(plain.shares[token, [IMAGE, SINKS]].sum())
    if name == "image gain":
        return np.nan if plain.image_gain is None else float(plain.image_gain[token])
    if name == "log p":
        return float(plain.log_p[token])
    return float(explanation.cuts[name][token]) if name in explanation.cuts else np.nan


def _mean(values: np.ndarray, pictures: np.ndarray, count: int) -> Estimate:
    """A mean over words with its interval, clustered by picture."""
    mean = float(values.mean())
    shares = np.bincount(pictures, weights=values - mean, minlength=count) / len(values)
    own = Linearized(mean, shares, len(values), len(set(pictures.tolist())))
    return t_estimate(own, (-np.inf, np.inf))


def _auc(present: Sequence[float], invented: Sequence[float]) -> float | None:
    if not present or not invented or not np.isfinite([*present, *invented]).all():
        return None
    signs = np.sign(np.asarray(present)[:, None] - np.asarray(invented))
    return float((signs + 1).mean() / 2)


def _judged(explanations: Sequence[Explanation]) -> dict[str, dict[str, Figure]]:
    """Mean over the words of a category, then over categories, as the pointing game has it."""
    found: dict[str, dict[str, dict[str, list[Figure]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for each in explanations:
        categories = {own.word: own.category for own in each.plain.named or ()}
        for word, maps in each.judged.items():
            for name, figures in maps.items():
                for figure, value in figures.items():
                    found[name][figure][categories[word]].append(value)
    return {
        name: {
            figure: Figure(
                *(
                    float(
                        np.mean([np.mean([own[part] for own in values]) for values in by_category.values()])
                    )
                    for part in (0, 1)
                )
            )
            for figure, by_category in figures.items()
        }
        for name, figures in found.items()
    }
