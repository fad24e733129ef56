"""Made-up results of searches, as `results.json` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Difference = tuple[float, float | None, float | None]


def trial(
    number: int,
    candidate: str,
    figures: Mapping[str, Mapping[str, float]],
    *,
    gain: float = 0.0,
    cost: float = 1.0,
    images: int = 40,
    is_complete: bool = True,
    broken: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A trial; its cost is among the figures too."""
    return {
        "number": number,
        "candidate": candidate,
        "images": images,
        "value": gain,
        "gains": [gain],
        "figures": {name: {**each, "cost": cost} for name, each in figures.items()},
        "broken": list(broken),
        "is_complete": is_complete,
        "seconds": 30.0,
        "cost": cost,
    }


def row(
    label: str, values: Mapping[str, float], differences: Mapping[str, Difference] | None = None, **more: Any
) -> dict[str, Any]:
    """A row of the final table; a `p` below .05 gives it a mark."""
    cells = {}
    for name, value in values.items():
        difference = None
        if differences is not None:
            middle, low, high = differences[name]
            difference = {"value": middle, "low": low, "high": high, "error": None, "samples": 100}
            difference |= {"clusters": 100, "source": "bootstrap"}
        cells[name] = {"value": value, "difference": difference}
    p = more.get("p")
    mark = None if p is None else {"marked": p < 0.05, "reason": f"the corrected p is {p}", "p": p}
    return {"label": label, "cells": cells, "mark": mark, "cost": more.get("cost", 1.0), "seconds": None}


def settings(**more: Any) -> dict[str, Any]:
    """What a search was asked for."""
    given = {"task": "chair", "model": "tiny-llava", "revision": None, "protocol": None, "seed": 7}
    return {**given, "trials": 60, "budget": None, **more}


def captions() -> dict[str, Any]:
    """A search on captions of two data sets: a recipe of three parts, and a trial that was given up."""
    vhr, vcd, beam = "vhr(strength=2)", "vcd(alpha=0.5, beta=0.1)", "baseline.beam(num_beams=3)"
    recipe = f"{vhr}+{vcd}+{beam}"

    def both(wrong: float, recall: float) -> dict[str, dict[str, float]]:
        return {
            "usual": {"CHAIRi": wrong, "recall": recall, "words": 40},
            "unusual": {"CHAIRi": wrong + 0.1, "recall": recall - 0.1, "words": 44},
        }

    trials = [
        trial(0, "greedy", both(0.10, 0.70)),
        trial(1, vhr, both(0.08, 0.71), gain=0.02),
        trial(2, vcd, both(0.06, 0.60), gain=0.04, cost=2, broken=("recall >= -0.01 on usual",)),
        trial(3, recipe, both(0.05, 0.70), gain=0.05, cost=6),
        trial(4, "dola", both(0.2, 0.5), gain=-0.1, images=4, is_complete=False),
    ]
    alone = {"vhr": (-0.01, None, None), "vcd": (0.01, None, None), "baseline.beam": (0.0, -0.01, 0.01)}
    kept = {"recall": (-0.005, -0.02, 0.01), "words": (-1.5, -2.5, -0.5)}
    tables = []
    for data in ("usual", "unusual"):
        values = {"CHAIRi": 0.1, "recall": 0.7, "words": 40.0}
        rows = [row("greedy", values)]
        for name, difference in alone.items():
            rows.append(
                row(f"{name} alone", values | {"CHAIRi": 0.09}, {"CHAIRi": difference, **kept}, p=0.2)
            )
        for name, value in (("vhr", 0.065), ("vcd", 0.08), ("baseline.beam", 0.048)):
            difference = {"CHAIRi": (value - 0.1, value - 0.12, value - 0.08), **kept}
            rows.append(row(f"without {name}", values | {"CHAIRi": value}, difference, p=0.04, cost=2))
        own = {"CHAIRi": 0.0511, "recall": 0.695, "words": 38.5}
        rows.append(row("recipe", own, {"CHAIRi": (-0.0489, -0.07, -0.03), **kept}, p=0.0004, cost=6))
        rows.append(row("greedy, cut to the recipe", own, {"CHAIRi": (0.0, None, None), **kept}))
        metrics = ["CHAIRi", "recall", "cost", "words"]
        tables.append({"data": data, "images": 100, "metrics": metrics, "rows": rows})
    shares = {
        name: {"better": better, "percent": True}
        for name, better in (("CHAIRi", "lower"), ("recall", "higher"))
    }
    return {
        "settings": settings(),
        "images": {name: {"search": 40, "choice": 41, "test": 100} for name in ("usual", "unusual")},
        "metrics": shares
        | {"words": {"better": "", "percent": False}, "cost": {"better": "lower", "percent": False}},
        "objective": ["CHAIRi"],
        "guards": ["recall >= -0.01", "cost <= 6"],
        "trials": trials,
        "importances": {"attention": 0.2, "decoding": 0.1, "logits": 0.7},
        "finalists": [
            {"candidate": recipe, "gains": [0.045], "figures": both(0.06, 0.7), "broken": []},
            {"candidate": vhr, "gains": [0.01], "figures": both(0.09, 0.7), "broken": []},
            {
                "candidate": vcd,
                "gains": [0.05],
                "figures": both(0.05, 0.6),
                "broken": ["recall >= -0.01 on usual"],
            },
        ],
        "chosen": recipe,
        "parts": [
            {"name": "vhr", "parameters": {"strength": 2}, "changes": "outputs of heads"},
            {"name": "vcd", "parameters": {"alpha": 0.5, "beta": 0.1}, "changes": "logits"},
            {"name": "baseline.beam", "parameters": {}, "changes": "decoding"},
        ],
        "offset": None,
        "test": tables,
    }


def yes_no() -> dict[str, Any]:
    """A search on yes/no questions about one data set, by area under the curve, that found nothing."""
    figures = {"pope": {"AUC": 0.9, "accuracy": 0.85, "yes ratio": 0.5}}
    better = {"pope": {"AUC": 0.902, "accuracy": 0.85, "yes ratio": 0.5}}
    return {
        "settings": settings(task="pope", budget=7200.0),
        "images": {"pope": {"search": 20, "choice": 20, "test": 40}},
        "metrics": {
            "accuracy": {"better": "higher", "percent": True},
            "yes ratio": {"better": "", "percent": True},
            "cost": {"better": "lower", "percent": False},
            "AUC": {"better": "higher", "percent": True},
        },
        "objective": ["AUC"],
        "guards": [],
        "trials": [trial(0, "greedy", figures), trial(1, "vcd", better, gain=0.002, cost=2)],
        "importances": {},
        "finalists": [{"candidate": "vcd", "gains": [-0.001], "figures": figures, "broken": []}],
        "chosen": None,
        "parts": [],
        "offset": None,
        "test": [],
    }
