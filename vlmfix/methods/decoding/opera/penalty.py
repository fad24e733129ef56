"""How OPERA measures the trust in single tokens of an answer, and when it takes tokens back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Factor on every column product, in the released code alone.
_LOG_BASE = math.log(1e-7)
_SMALLEST_WEIGHT = 1e-30
# Column scores are cut at the exponential of this.
_LARGEST_LOG = 80.0
# Up to so many tokens, looking at the image is rewarded and nothing is taken back, in the released code.
FIRST_TOKENS = 10


def attention_rows(weights: Tensor) -> Tensor:
    """One attention row over all heads (arXiv 2311.17911): the maxima over the heads, scaled to the sum 1.

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)` float32.

    Returns:
        `(batch, rows, keys)`.
    """
    largest = weights.amax(dim=1)
    return largest / largest.sum(dim=-1, keepdim=True)


def extend_columns(columns: Tensor, rows: Tensor, scale_factor: float) -> Tensor:
    """Logarithms of the column products with one more row, and with the column that this row opens.

    Args:
        columns: of the answer so far, `(..., tokens)`.
        rows: attention of the next token to the answer and itself, `(..., tokens + 1)`.
        scale_factor: on every attention.

    Returns:
        `(..., tokens + 1)`.
    """
    opened = torch.nn.functional.pad(columns, (0, 1))
    return opened + (scale_factor * rows.clamp_min(_SMALLEST_WEIGHT)).log()


def column_scores(columns: Tensor) -> Tensor:
    """Logarithms of the scores of all columns, from those of their products."""
    return columns + _LOG_BASE


def penalties(scores: Tensor, image_attention: Tensor) -> Tensor:
    """What is taken off a logit: the largest column score; of early tokens, minus the attention to the image.

    Args:
        scores: logarithms of the column scores, the candidate's row included, `(..., tokens)`.
        image_attention: of the candidates, `(...)`.
    """
    if scores.shape[-1] <= FIRST_TOKENS:
        return -image_attention
    return scores.amax(dim=-1).clamp_max(_LARGEST_LOG).exp()


def candidate_scores(logits: Tensor, penalty: Tensor | float) -> Tensor:
    """Log-probabilities of candidates among each other, `(beams, candidates)`."""
    return (logits - penalty).log_softmax(dim=-1)


def mode(values: Iterable[int]) -> int:
    """The most frequent value; the lowest of several."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


@dataclass
class Rollbacks:
    """When an answer is taken back, and to where (arXiv 2311.17911, retrospection-allocation).

    Args:
        threshold: a location that was seen more often in every live beam is a summary token.
        limit: of rollbacks to one token.
        window: tokens that can be taken back; what was once out of reach stays.
        history: for each token of the answer, the location that each beam reported; None: it was not live.
        times: rollbacks so far, by the token that was to be chosen anew.
        oldest: the first token in reach.
    """

    threshold: float
    limit: int
    window: int
    history: list[list[int | None]] = field(default_factory=list)
    times: Counter[int] = field(default_factory=Counter)
    oldest: int = 0

    def report(self, locations: Sequence[int | None]) -> int | None:
        """Note where the beams found their largest column score at a token that is about to be chosen.

        Args:
            locations: of each beam; None: it is not live.

        Returns:
            The token from which the answer is to be chosen anew; None: it goes on.
        """
        self.history.append(list(locations))
        self.oldest = max(self.oldest, len(self.history) - 1 - self.window)
        live = [beam for beam, location in enumerate(locations) if location is not None]
        summary = mode(location for location in locations if location is not None)
        counts = [sum(entry[beam] == summary for entry in self.history) for beam in live]
        if summary < FIRST_TOKENS or min(counts) <= self.threshold:
            return None
        target = next((each for each in (summary + 1, summary) if self.times[each] < self.limit), None)
        if target is None:
            return None
        self.times[target] += 1
        # What is about to be chosen cannot be taken back; the summary token itself goes then.
        target = max(min(target, len(self.history) - 2), self.oldest)
        del self.history[target + 1 :]
        return target
