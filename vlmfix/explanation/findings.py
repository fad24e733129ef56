"""What pictures say of the values of a profile: sinks, vision-aware heads, hallucination heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlmfix.calibration.head_statistics import contrast, head_mask, random_set_p, random_sets

Verdict = Literal["supported", "in part", "contradicted", "undecided", "not tested"]

_RANDOM_SETS = 20
_CHANCE = 0.05
_FEW = 10  # object tokens of a kind, below which heads are not judged


class Finding(NamedTuple):
    """What was found about one value of a profile.

    Args:
        parameter: of the profile.
        value: as the profile has it, in words; "" where it has none.
        source: where the profile has it from.
        verdict: what the pictures say of it.
        reason: the figures behind the verdict.
    """

    parameter: str
    value: str
    source: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, eq=False)
class SinkEvidence:
    """Sinks in some pictures.

    Args:
        first: RMS-normalised sizes of the first token, `(pictures, layers, hidden)`.
        scores: sink scores of the image tokens of each picture, `(layers, image tokens)` each.
    """

    first: np.ndarray
    scores: Sequence[np.ndarray]

    @property
    def middle(self) -> slice:
        """The middle half of the layers, which `vlmfix calibrate` looks at."""
        layers = self.first.shape[1]
        return slice(layers // 4, max(3 * layers // 4, layers // 4 + 1))

    def dimensions(self, threshold: float) -> dict[int, float]:
        """Dimensions in which the first token is above the threshold in most middle layers and pictures, with
        that share."""
        shares = self.shares(threshold)
        return {index: float(shares[index]) for index in np.flatnonzero(shares > 0.5).tolist()}

    def shares(self, threshold: float) -> np.ndarray:
        """Share of middle layers and pictures in which the first token is above, by dimension."""
        found: np.ndarray = (self.first[:, self.middle] > threshold).mean(axis=(0, 1))
        return found


def sink_findings(evidence: SinkEvidence, values: Mapping[str, Any], threshold: float) -> list[Finding]:
    """What pictures say of the sink dimensions and the threshold.

    Args:
        values: of the profile.
        threshold: of the profile, or else the one of `vlmfix calibrate`.
    """
    found = evidence.dimensions(threshold)
    listed = ", ".join(map(str, found)) or "none"
    entry = values.get("sink_dimensions")
    if entry is None:
        reason = f"the profile has none; the first token exceeds {threshold:g} in the dimensions {listed}"
        dimensions = Finding("sink_dimensions", "", "", "not tested", reason)
    else:
        missing = [each for each in entry["value"] if each not in found]
        further = [each for each in found if each not in entry["value"]]
        reason = f"in most middle layers the first token exceeds {threshold:g} in the dimensions {listed}"
        if missing:
            shares = evidence.shares(threshold)
            said = " and ".join(f"{each} does so in {shares[each]:.0%}" for each in missing)
            reason += f"; of those of the profile, {said} of the middle layers"
        elif further:
            reason += f", {', '.join(map(str, further))} beside those of the profile"
        verdict: Verdict = "in part" if missing else "supported"
        verdict = "contradicted" if len(missing) == len(entry["value"]) else verdict
        dimensions = Finding("sink_dimensions", _shown(entry["value"]), entry["source"], verdict, reason)
    entry = values.get("sink_threshold")
    if entry is None:
        return [dimensions]
    first = float(np.median(evidence.first[:, evidence.middle].max(axis=-1)))
    scores = np.concatenate([each[evidence.middle].ravel() for each in evidence.scores])
    share = float((scores > threshold).mean())
    reason = f"the first token is at {first:.1f}, and {share:.1%} of the image tokens are above the threshold"
    verdict = "supported"
    if first <= threshold or share > 0.5:
        verdict = "contradicted"
    elif share == 0:
        verdict, reason = "undecided", f"{reason}: no picture has a visual sink"
    return [dimensions, Finding("sink_threshold", _shown(entry["value"]), entry["source"], verdict, reason)]


def vision_head_finding(divergence: np.ndarray, values: Mapping[str, Any]) -> Finding | None:
    """What pictures say of the layers that VHR reinforces; None where the profile names none.

    Args:
        divergence: of each head from the prompt without the image (VHD), mean of the pictures,
            `(layers, heads)`; NaN in layers that do not attend.
    """
    entry = values.get("vhr_num_last_layers")
    if entry is None:
        return None
    layers = len(divergence)
    chosen = np.zeros(layers, dtype=bool)
    chosen[layers - entry["value"] :] = True
    chosen[list(values.get("vhr_extra_layers", {}).get("value", ()))] = True
    value = f"last {entry['value']}" + (
        f", and {_shown(values['vhr_extra_layers']['value'])}" if "vhr_extra_layers" in values else ""
    )
    inside, outside = (
        float(np.nanmean(divergence[own])) if own.any() else np.nan for own in (chosen, ~chosen)
    )
    reason = f"mean divergence of a head is {inside:.3g} in these layers and {outside:.3g} in the others"
    verdict: Verdict = (
        "undecided" if np.isnan(outside) else "supported" if inside > outside else "contradicted"
    )
    return Finding("vhr_num_last_layers", value, entry["source"], verdict, reason)


def hallucination_heads(values: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The heads that the profile lists for AD-HH."""
    return [(layer, head) for layer, head in values.get("adhh_heads", {}).get("value", ())]


def head_lists(heads: Sequence[tuple[int, int]], shape: tuple[int, int]) -> Tensor:
    """The listed heads, and as many random ones of the same layers again and again, `(lists, layers, heads)`
    bool."""
    return torch.cat([head_mask([list(heads)], shape), random_sets(list(heads), shape, draws=_RANDOM_SETS)])


def head_finding(effects: Tensor, hallucinated: Tensor, values: Mapping[str, Any]) -> Finding | None:
    """What captions say of the hallucination heads; None where the profile lists none.

    Args:
        effects: how far the probability of each object token falls without each of `head_lists`,
            `(tokens, lists)`.
        hallucinated: which of the objects are not there, `(tokens,)` bool.
    """
    entry = values.get("adhh_heads")
    if entry is None:
        return None
    count = len(entry["value"])
    value = f"{count} heads: {', '.join(f'{layer}:{head}' for layer, head in entry['value'][:8])}"
    value += ", ..." if count > 8 else ""
    wrong, right = int(hallucinated.sum()), int((~hallucinated).sum())
    few = f"{wrong} invented and {right} present objects are named"
    if not wrong or not right:
        reason = f"{few}, and both are needed: give --instances of a picture with an invention, or --data"
        return Finding("adhh_heads", value, entry["source"], "not tested", reason)
    found = contrast(effects, hallucinated)
    gain, by_chance = float(found.difference[0]), found.difference[1:].tolist()
    p = random_set_p(gain, by_chance)
    reason = (
        f"without them the probability of invented objects falls by {float(found.on_hallucinated[0]):.3f}, "
        f"of present ones by {float(found.on_correct[0]):.3f}; random heads of the same layers do as much "
        f"with p = {p:.2f} ({few})"
    )
    if min(wrong, right) < _FEW:
        return Finding("adhh_heads", value, entry["source"], "undecided", f"{reason}: too few")
    verdict: Verdict = "contradicted" if gain <= 0 else "supported" if p <= _CHANCE else "undecided"
    return Finding("adhh_heads", value, entry["source"], verdict, reason)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
