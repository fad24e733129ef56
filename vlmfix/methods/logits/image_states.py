"""What the output head makes of image tokens, gathered over all of them in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Logits that are computed at once: 128 MiB in float32, and a few times that for what becomes of them.
_BLOCK = 2**25

Head = Callable[[Tensor], Tensor]
"""From hidden states `(batch, tokens, hidden)` to logits `(batch, tokens, vocabulary)` float32."""


def gathered(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """States of some tokens, `(batch, most, hidden)`, and which of these are none, `(batch, most)` bool.

    Samples with fewer tokens than others get zeros on the left. Reads the device once.

    Args:
        states: `(batch, tokens, hidden)`.
        tokens: `(batch, tokens)` bool.
    """
    tokens = tokens.to(states.device)
    most = int(tokens.sum(dim=1).max())
    index = tokens.int().argsort(dim=1, stable=True)[:, tokens.shape[1] - most :]
    known = tokens.gather(1, index)
    own = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
    return own * known[..., None], known


def position_entropy(head: Head, states: Tensor, known: Tensor) -> Tensor:
    """How evenly the score of each token of the vocabulary is spread over image tokens (arXiv 2603.27201).

    The entropy of a softmax over the image tokens, over the logarithm of their number.

    Args:
        head: the output head.
        states: of image tokens, after the final norm, `(batch, tokens, hidden)`.
        known: which are no padding, `(batch, tokens)` bool.

    Returns:
        `(batch, vocabulary)` float32 in [0, 1]; 1 for samples with one image token, 0 without any.
    """
    highest = total = weighted = None
    for scores, mask in _blocks(head, states, known):
        lowest = torch.finfo(scores.dtype).min
        most = scores.masked_fill(~mask, lowest).amax(dim=1)
        if highest is None or total is None or weighted is None:
            highest, total, weighted = torch.full_like(most, lowest), torch.zeros_like(most), most * 0
        most = torch.maximum(most, highest)
        below = (scores - most[:, None]).masked_fill(~mask, 0.0)
        powers = below.exp() * mask
        earlier = (highest - most).clamp_min(lowest)
        kept = earlier.exp()
        weighted = kept * (weighted + earlier * total) + (below * powers).sum(dim=1)
        total = kept * total + powers.sum(dim=1)
        highest = most
    assert total is not None
    assert weighted is not None
    total = total.clamp_min(1)  # the greatest score alone gives 1
    entropy = total.log() - weighted / total
    count = known.sum(dim=1, keepdim=True).to(entropy.device)
    flat = (count == 1).to(entropy)
    return torch.where(count > 1, entropy / count.clamp_min(2).log(), flat).clamp(0, 1)


def grounding(head: Head, states: Tensor, known: Tensor) -> Tensor:
    """How likely each token of the vocabulary is at the image token where it is likeliest (arXiv 2602.13600).

    Args:
        head: the output head.
        states: of image tokens, after the final norm, `(batch, tokens, hidden)`.
        known: which are no padding, `(batch, tokens)` bool.

    Returns:
        `(batch, vocabulary)` float32 in [0, 1]; 0 for samples without an image token.
    """
    best: Tensor | None = None
    for scores, mask in _blocks(head, states, known):
        shares = (scores.softmax(dim=-1) * mask).amax(dim=1)
        best = shares if best is None else torch.maximum(best, shares)
    assert best is not None
    return best


def _blocks(head: Head, states: Tensor, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of some tokens after the others, `(batch, tokens, vocabulary)`, and which are no padding,
    `(batch, tokens, 1)` bool."""
    start, size = 0, 1  # the first tells the size of the vocabulary
    while start < states.shape[1]:
        part = slice(start, start + size)
        scores = head(states[:, part])
        yield scores, known[:, part, None].to(scores.device)
        start += size
        size = max(1, _BLOCK // (scores.shape[0] * scores.shape[-1]))
