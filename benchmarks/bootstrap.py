"""Paired bootstrap of ratios over scenes: intervals that are clustered by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Ratio(NamedTuple):
    """A statistic of the form sum of parts over sum of wholes, as its terms by scene.

    Args:
        parts: for instance the wrong categories of each caption, `(scenes,)`.
        wholes: for instance the named categories of each caption, `(scenes,)`; a sum below 1 counts as 1.
    """

    parts: np.ndarray
    wholes: np.ndarray

    def over(self, weights: np.ndarray) -> np.ndarray:
        """The ratio with every scene taken `weights` times, `(..., scenes)` -> `(...)`."""
        ratios: np.ndarray = (weights @ self.parts) / np.maximum(weights @ self.wholes, 1)
        return ratios

    @property
    def value(self) -> float:
        """The ratio over all scenes."""
        return float(self.over(np.ones(len(self.parts))))


@dataclass(frozen=True)
class Estimate:
    """A value, its difference to greedy on the same scenes, and the 95 % interval of the difference."""

    value: float
    difference: float
    low: float
    high: float


def resample(scenes: int) -> np.ndarray:
    """How often each scene is drawn, with replacement, in each resample; `(RESAMPLES, scenes)`."""
    shares = np.full(scenes, 1 / scenes)
    return np.random.default_rng(0).multinomial(scenes, shares, size=RESAMPLES).astype(float)


def compare(ratio: Ratio, greedy: Ratio, weights: np.ndarray) -> Estimate:
    """A ratio against the one of greedy on the same scenes.

    Args:
        ratio: of the method.
        greedy: of plain decoding, the same scenes in the same order.
        weights: of `resample`; both ratios are taken over the same resamples, so that what is difficult in
            a scene for both cancels.

    Returns:
        The interval is the percentile interval of the resampled differences.
    """
    differences = ratio.over(weights) - greedy.over(weights)
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(ratio.value, ratio.value - greedy.value, float(low), float(high))
