"""A list of heads from their effects: ranked on one half of the captions, chosen on the other."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from vlmfix.calibration.head_statistics import (
    Head,
    choose_count,
    contrast,
    head_mask,
    random_set_p,
    random_sets,
    ranking,
    resampled_differences,
    shares_in_best,
)
from vlmfix.calibration.object_tokens import HeadReader, ObjectTokens

# Numbers of heads to choose from, up to a tenth of all.
_COUNTS = (0, 1, 2, 5, 10, 20, 40, 80)

# Silenced one by one: four times the published share of the heads, which is 20 of 1024.
_CANDIDATES = 4 * 20 / 1024

# Object tokens on which the estimate is compared with every head silenced.
_COMPARED = 20

_RANDOM_SETS = 20
_MAX_CORRECT_DROP = 0.05

# A larger p is worth a warning.
_CHANCE = 0.05


@dataclass(frozen=True)
class Ranked:
    """Heads by their effects.

    Args:
        order: of all heads; the candidates, as silencing one by one ranks them, come first.
        estimated: the order by the estimate.
        elsewhere: the order by the estimate on the other half of the pictures.
        exact: effects of the candidates in the order of the estimate, `(tokens, candidates)`.
        captions: on which the heads were ranked.
        rank_correlations: of the mean differences, by what is compared.
        saturated: share of the object tokens with a probability above 0.99, whose effects vanish.
    """

    order: list[Head]
    estimated: list[Head]
    elsewhere: list[Head]
    exact: Tensor
    captions: ObjectTokens
    rank_correlations: dict[str, float]
    saturated: float

    @property
    def silenced(self) -> list[Head]:
        """The candidates, best first."""
        return self.order[: self.exact.shape[1]]

    def findings(self, kept: int) -> dict[str, Any]:
        """What supports the order and its first heads, for people."""
        effects = contrast(self.exact, self.captions.hallucinated)
        resampled = resampled_differences(self.exact, self.captions.hallucinated, self.captions.images)
        shares = shares_in_best(resampled, kept)
        shown = {}
        for layer, head in self.order[: min(max(10, kept), len(shares))]:
            index = self.estimated.index((layer, head))
            shown[f"head {layer}:{head}"] = (
                f"{effects.on_hallucinated[index]:.4f} on hallucinated objects, "
                f"{effects.on_correct[index]:.4f} on correct ones, t {effects.t[index]:.1f}, "
                f"among the best {kept} in {shares[index]:.0%} of resamples"
            )
        common = {
            "best heads common to estimate and silencing": self.estimated,
            "best heads common to both halves": self.elsewhere,
        }
        best = set(self.order[:kept])
        return (
            {f"Spearman of {name}": round(value, 2) for name, value in self.rank_correlations.items()}
            | {name: f"{len(best & set(order[:kept]))} of {kept}" for name, order in common.items()}
            | {"object tokens of probability above 0.99": f"{self.saturated:.0%}"}
            | shown
        )


def rank(reader: HeadReader, captions: ObjectTokens, others: ObjectTokens) -> Ranked:
    """Rank heads on captions, by the estimate and then the best of them exactly.

    Args:
        others: on which only the estimate is made, to see how stable it is.
    """
    estimates, probabilities = zip(*map(reader.estimates, (captions, others)), strict=True)
    differences, elsewhere = (
        contrast(each, half.hallucinated).difference
        for each, half in zip(estimates, (captions, others), strict=True)
    )
    estimated = [reader.heads[index] for index in ranking(differences)]
    candidates = estimated[: max(8, round(_CANDIDATES * len(estimated)))]
    exact = reader.exact(captions, reader.each_alone(candidates))
    order = [candidates[index] for index in ranking(contrast(exact, captions.hallucinated).difference)]
    few = captions.first(_COMPARED)
    silenced = reader.exact(few, reader.each_alone(reader.heads), counts=False)
    compared = {
        "estimate and silencing": [
            contrast(each, few.hallucinated).difference
            for each in (estimates[0][: len(few.hallucinated)], silenced)
        ],
        "both halves": [differences, elsewhere],
    }
    return Ranked(
        order + estimated[len(candidates) :],
        estimated,
        [reader.heads[index] for index in ranking(elsewhere)],
        exact,
        captions,
        {name: float(spearmanr(*pair).statistic) for name, pair in compared.items()},
        float((torch.cat(probabilities) > 0.99).float().mean()),
    )


def choose(reader: HeadReader, captions: ObjectTokens, order: list[Head]) -> tuple[int, dict[str, Any]]:
    """How many of the first heads to list, on captions on which they were not ranked, and what these do.

    Raises:
        ValueError: no list gains anything.
    """
    counts = [count for count in _COUNTS if count <= len(order) / 10]
    lists = [head_mask([order[:count]], reader.shape) for count in counts[1:]]
    others = [random_sets(order[:count], reader.shape, draws=_RANDOM_SETS) for count in counts[1:]]
    effects = reader.exact(captions, torch.cat([*lists, *others]))
    found = contrast(effects, captions.hallucinated)
    gains = [0.0, *found.difference[: len(lists)].tolist()]
    drops = [0.0, *found.on_correct[: len(lists)].tolist()]
    resampled = resampled_differences(effects[:, : len(lists)], captions.hallucinated, captions.images)
    errors = [0.0, *resampled.std(dim=0).tolist()]
    kept = choose_count(counts, gains, errors, drops, max_correct_drop=_MAX_CORRECT_DROP)
    tried = ", ".join(
        f"{count}: {gain:.3f} +- {error:.3f} (correct objects {drop:.3f})"
        for count, gain, error, drop in zip(counts, gains, errors, drops, strict=True)
        if count
    )
    if not kept:
        raise ValueError(
            "no list of heads lowers the probability of hallucinated objects clearly more than that of "
            f"correct ones, and the latter by {_MAX_CORRECT_DROP} at most, on pictures that it was not found "
            f"on (gain by number of heads {tried}); give more pictures, or such as the model gets wrong"
        )
    index = counts.index(kept)
    by_chance = found.difference[len(lists) :].view(len(lists), -1)[index - 1]
    p = random_set_p(gains[index], by_chance.tolist())
    if p > _CHANCE:
        warnings.warn(
            f"random heads of the same layers do as much as the list (p = {p:.2f}); do not trust it, give "
            "more pictures",
            stacklevel=3,
        )
    return kept, {
        "gain on held-out pictures": round(gains[index], 3),
        "gain by number of heads": tried,
        "gain of random heads of the same layers": f"{by_chance.mean():.3f} on average, "
        f"{by_chance.max():.3f} at most, in {_RANDOM_SETS} draws",
        "p against random heads": round(p, 3),
    }
