"""Figures of HallusionBench: right items, figures and questions (arXiv 2310.14566)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

Rule = Literal["parse_all", "parse_image_only"]
RULES: tuple[Rule, ...] = ("parse_all", "parse_image_only")
"""`parse_all`: all items, and where no picture is shown an answer without yes and no is right.
`parse_image_only`: the form of VLMEvalKit, only items with a picture, and such an answer is wrong."""

_Meta = Mapping[str, Any]


def is_right(verdict: Verdict | None, target: str, *, unclear_allowed: bool) -> bool:
    """Whether an answer is right; one without yes and no (None) is unclear, and right only where allowed."""
    return unclear_allowed if verdict is None else verdict == target


def without_image(meta: _Meta) -> bool:
    """Whether a sample is asked without a picture: it is on figure 0 of category VS."""
    return bool(meta["visual_input"] == "0")


def _figure(meta: _Meta) -> Hashable:
    return "figure", *(meta[name] for name in ("category", "subcategory", "set_id", "figure_id"))


def _question(meta: _Meta) -> Hashable:
    return "question", *(meta[name] for name in ("category", "subcategory", "set_id", "question_id"))


def _level(meta: _Meta) -> Hashable:
    return "hard" if meta["visual_input"] == "2" else "easy", _question(meta)


UNITS: Mapping[str, Callable[[_Meta], Hashable]] = {"figure": _figure, "question": _question, "level": _level}
"""Units that are right if all of their items are: a figure with all of its questions; a question on all
figures of its set; the same on edited figures alone, and on all others."""


def unit_sizes(metas: Sequence[_Meta]) -> list[dict[str, int]]:
    """How many items each item's units have, by the names of `UNITS`; so a unit of which some were not asked
    is found out later."""
    counts = {name: Counter(map(unit, metas)) for name, unit in UNITS.items()}
    return [{name: counts[name][unit(meta)] for name, unit in UNITS.items()} for meta in metas]


def figures(samples: Sequence[Sample], right: Sequence[bool | None]) -> list[Metric]:
    """All figures over all items, then by category, then by subcategory.

    A figure or question of which an item was not answered, or not asked, is left out.

    Args:
        samples: what was asked; several times, where there are several repeats.
        right: whether each answer is right; None: there is none.
    """
    answered = np.array([each is not None for each in right], dtype=float)
    terms: dict[str, tuple[np.ndarray, np.ndarray, Literal["higher", "lower", ""]]] = {
        "aAcc": (np.array([each is True for each in right], dtype=float), answered, "higher")
    }
    shares = {name: _right_shares(samples, right, name) for name in UNITS}
    on_image = np.array([not without_image(sample.meta) for sample in samples])
    is_hard = np.array([sample.meta["visual_input"] == "2" for sample in samples])
    masks = {"fAcc": ("figure", on_image), "qAcc": ("question", np.ones_like(on_image))}
    masks |= {"easy": ("level", ~is_hard), "hard": ("level", is_hard)}
    for name, (unit, mask) in masks.items():
        counted = (~np.isnan(shares[unit]) & mask).astype(float)
        terms[name] = ((shares[unit] == 1) * counted, counted, "higher")
    consistency = shares["figure"], terms["fAcc"][1]
    terms["figures mixed"] = ((consistency[0] % 1 > 0) * consistency[1], consistency[1], "")
    terms["figures wrong"] = ((consistency[0] == 0) * consistency[1], consistency[1], "lower")
    groups = {"": np.ones(len(samples))}
    for field in ("category", "subcategory"):
        values = np.array([sample.meta[field] for sample in samples])
        names = sorted(set(values.tolist()))
        groups |= {name: (values == name).astype(float) for name in names if len(names) > 1}
    return [
        Metric(name, (parts * mask)[None], (wholes * mask)[None], group, better)
        for group, mask in groups.items()
        for name, (parts, wholes, better) in terms.items()
    ]


def _right_shares(samples: Sequence[Sample], right: Iterable[bool | None], name: str) -> np.ndarray:
    """On the first sample of each complete unit, the share of its items that are right; elsewhere NaN."""
    repeats: Counter[str] = Counter()
    units: defaultdict[Hashable, list[tuple[int, bool]]] = defaultdict(list)
    for place, (sample, each) in enumerate(zip(samples, right, strict=True)):
        if each is not None:
            units[repeats[sample.id], UNITS[name](sample.meta)].append((place, each))
        repeats[sample.id] += 1
    shares = np.full(len(samples), np.nan)
    for members in units.values():
        first = members[0][0]
        if len(members) == samples[first].meta["units"][name]:
            shares[first] = np.mean([each for _, each in members])
    return shares
