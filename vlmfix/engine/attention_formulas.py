"""Attention as formulas on tensors: scores, weights, and what they make of the values."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_scores(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Scaled products in float32, without repeating the key heads of grouped-query attention.

    Args:
        query: `(batch, heads, rows, head_dim)`.
        key: `(batch, key_value_heads, keys, head_dim)`.

    Returns:
        `(batch, heads, rows, keys)`.
    """
    batch, heads, rows, head_dim = query.shape
    grouped, keys = query.reshape(batch * key.shape[1], -1, head_dim), key.flatten(0, 1)
    # With beta=0 nothing is added; one operation in the place of a few, of which a step has many.
    scores = torch.baddbmm(grouped.new_empty(()), grouped, keys.transpose(1, 2), beta=0, alpha=scaling)
    return scores.float().view(batch, heads, rows, key.shape[2])


def softcapped(scores: Tensor, cap: float) -> Tensor:
    """Scores that a model keeps between `-cap` and `cap`, before its mask (Gemma 2, arXiv 2408.00118)."""
    return cap * torch.tanh(scores / cap)


def softmax(scores: Tensor, seen: Tensor | None = None, sinks: Tensor | None = None) -> Tensor:
    """Weights of scores.

    Args:
        scores: `(batch, heads, rows, keys)` float32.
        seen: the mask of the rows, boolean or additive; None: they see everything.
        sinks: a score of each head that takes a part of every row and attends to nothing, `(heads,)`
            (gpt-oss, arXiv 2508.10925); rows sum to less than 1 then.
    """
    masked = _masked(scores, seen, sinks)
    weights = torch.softmax(masked, dim=-1)
    return weights if sinks is None else weights[..., :-1]


def log_sum_exp(scores: Tensor, seen: Tensor | None = None, sinks: Tensor | None = None) -> Tensor:
    """Logarithm of what `softmax` divides by, `(batch, heads, rows, 1)`; see there."""
    return _masked(scores, seen, sinks).logsumexp(dim=-1, keepdim=True)


def _masked(scores: Tensor, seen: Tensor | None, sinks: Tensor | None) -> Tensor:
    if seen is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~seen, lowest) if seen.dtype == torch.bool else scores + seen.float()
    if sinks is None:
        return scores
    column = sinks.to(scores)[:, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1)


def attend(weights: Tensor, value: Tensor) -> Tensor:
    """Weighted sums of the values.

    Args:
        weights: `(batch, heads, rows, keys)`.
        value: `(batch, key_value_heads, keys, head_dim)`.

    Returns:
        `(batch, rows, heads, head_dim)`.
    """
    batch, heads, rows, keys = weights.shape
    grouped = weights.to(value.dtype).reshape(batch * value.shape[1], -1, keys)
    return torch.bmm(grouped, value.flatten(0, 1)).view(batch, heads, rows, value.shape[-1]).transpose(1, 2)


def causal(queries: Tensor, num_queries: int, num_keys: int) -> Tensor:
    """Which keys the query positions `(rows,)` of a plain causal block see; `(rows, keys)` bool."""
    return queries[:, None] + (num_keys - num_queries) >= torch.arange(num_keys, device=queries.device)
