"""Formulas of SHIELD: which words a picture shows, what its patches weigh, and the features that result."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Numbers that differ by less than this are all alike.
_SMALLEST_RANGE = 1e-6
# A single word picks out no patch against another word.
FEWEST_WORDS = 2


def matches(features: Tensor, words: Tensor) -> Tensor:
    """How like each word each patch is: cosines of the patches, pooled to the width of the words.

    Args:
        features: of the patches, `(patches, features)`.
        words: states of the text encoder, `(words, text features)`.

    Returns:
        `(patches, words)` float32.
    """
    pooled = nn.functional.adaptive_max_pool1d(features.float()[None], words.shape[-1])[0]
    pooled, words = (nn.functional.normalize(each, dim=-1) for each in (pooled, words.float()))
    return pooled @ words.T


def kept_words(matched: Tensor, threshold: float) -> Tensor:
    """Words that some patch is like by more than the threshold, `(words,)` bool."""
    return matched.amax(dim=0) > threshold


def patch_weights(matched: Tensor, kept: Tensor, *, gamma: float, gain_cut: float) -> Tensor:
    """Gain of each patch.

    Args:
        matched: see `matches`.
        kept: words that count, `(words,)` bool; with fewer than two there is no gain.
        gamma: exponent between the two stretches to [0, 1].
        gain_cut: gains up to this are 0.

    Returns:
        `(patches,)` float32 in [0, 1]; 0 everywhere where all patches are alike.
    """
    if int(kept.sum()) < FEWEST_WORDS:
        return torch.zeros_like(matched[:, 0])
    gains = _stretched(_stretched(matched[:, kept].amax(dim=1)) ** gamma)
    return torch.where(gains > gain_cut, gains, 0.0)


def _stretched(values: Tensor) -> Tensor:
    """Values from 0 to 1; 0 everywhere where they are all alike."""
    low, high = values.min(), values.max()
    return torch.where(high - low < _SMALLEST_RANGE, 0.0, (values - low) / (high - low))


def repaired(features: Tensor, bias: Tensor, weights: Tensor, bias_weight: float) -> Tensor:
    """Features without a share of the response to noise, and with the gains of the patches.

    Args:
        features: `(..., patches, features)`.
        bias: mean features of noise images, `(patches, features)`.
        weights: gains, `(..., patches)`.
        bias_weight: share of the bias that is taken off.
    """
    return features - bias_weight * bias + features * weights[..., None]


def token_runs(kept: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Where runs of kept words stand among the tokens of the same text for another tokenizer.

    Args:
        kept: `(words,)` bool.
        tokens: how many the other tokenizer makes of the text.

    Returns:
        First and last token of each run, both inclusive.
    """
    words = len(kept)
    edges = torch.nn.functional.pad(kept.int(), (1, 1)).diff()
    first, after = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return [
        (start * tokens // words, (stop - 1) * tokens // words)
        for start, stop in zip(first, after, strict=True)
    ]
