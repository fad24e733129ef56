"""Two outcomes on the same samples: whether they may be paired, and the estimates of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmfix.evaluation.analysis.estimates import Estimates
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.files.hashing import differences


def paired(
    outcome: Outcome, whole: Estimates, other: Outcome, base: Estimates
) -> tuple[Estimates, Estimates]:
    """Both on the samples that both answered."""
    kept = _answered(other) & _answered(outcome)
    return (whole, base) if kept.all() else (Estimates(outcome, kept), Estimates(other, kept))


def why_unpaired(first: Outcome, other: Outcome) -> str:
    """Why two outcomes cannot be compared; "" if they can."""
    own, others = _settings(first), _settings(other)
    if own and others and (lines := differences(own, others)):
        return f"the runs differ in {'; '.join(lines)}"
    asked = [
        {
            (sample.id, int(repeat)): (sample.prompt, sample.target, sample.cluster)
            for sample, repeat in zip(outcome.samples, outcome.repeats, strict=True)
        }
        for outcome in (first, other)
    ]
    if asked[0].keys() != asked[1].keys():
        alone = len(asked[0].keys() ^ asked[1].keys())
        return f"only one of the two has {alone:,} of the samples"
    differing = sum(question != asked[1][key] for key, question in asked[0].items())
    return f"{differing:,} samples differ in prompt, target answer or image" if differing else ""


def _settings(outcome: Outcome) -> dict[str, Any]:
    """What must be equal in the keys of two runs that are compared: all but the methods, what they ask and
    how they decode."""
    key = {
        name: value
        for name, value in outcome.details.get("key", {}).items()
        if name not in ("methods", "decoding", "calibrated_on")
    }
    if "protocol" in key:
        key["protocol"] = {name: value for name, value in key["protocol"].items() if name != "id"}
    return key


def _answered(outcome: Outcome) -> np.ndarray:
    return np.array([sample.score is not None for sample in outcome.samples], dtype=bool)
