"""Where pruning should happen, and how much may stay: the arithmetic of calibrated schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from vlmfix.methods.pruning.base import mean_tokens

# Shares of the image tokens left after the three layers of LLaVA-1.5-7B at budget 64.
_KEPT_SHARES = (133 / 576, 27 / 576, 3 / 576)


def change_point(curve: np.ndarray) -> int:
    """Where the second of two segments starts, `curve` `(layers,)`; least squares around the segment means.

    Raises:
        ImportError: ruptures is not installed.
        ValueError: fewer than four layers, where there are no two segments of two.
    """
    try:
        import ruptures
    except ImportError as error:
        raise ImportError(
            "calibrating AdaptInfer needs ruptures: pip install 'vlmfix[adaptinfer]'"
        ) from error
    if len(curve) < 4:
        raise ValueError(f"the model has {len(curve)} layers; change points need 4 or more")
    start, _ = ruptures.Dynp(model="l2", min_size=2, jump=1).fit(curve).predict(n_bkps=1)
    return int(start)


def dense_layers(counts: Counter[int], num_layers: int, *, pruning_stages: int = 3) -> list[int]:
    """The most frequent layers that lie an eighth of the depth, and at least two layers, apart; ascending."""
    apart = max(2, num_layers // 8)
    chosen: list[int] = []
    for layer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if layer <= num_layers - 2 and all(abs(layer - other) >= apart for other in chosen):
            chosen.append(layer)
    return sorted(chosen[:pruning_stages])


def kept_ratios(mean_share: float, num_layers: int, prune_layers: Sequence[int]) -> list[float] | None:
    """Shares of the tokens still there that stay after each layer, for a mean share over all layers.

    The shares of LLaVA-1.5-7B at budget 64, scaled by one factor and never above what is there.

    Returns:
        One share a layer; None if the layers come too late for this mean, or it needs no pruning.
    """
    tokens = 10_000

    def kept(factor: float) -> list[float]:
        return [min(1.0, factor * share) * tokens for share in _KEPT_SHARES[: len(prune_layers)]]

    def mean(factor: float) -> float:
        return mean_tokens(tokens, num_layers, prune_layers, [round(each) for each in kept(factor)]) / tokens

    low, high = 0.0, 1 / _KEPT_SHARES[len(prune_layers) - 1]
    if not mean(low) < mean_share < mean(high):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < mean_share else (low, middle)
    left = [float(tokens), *kept(high)]
    return [round(after / before, 4) for before, after in pairwise(left)]
