"""Formulas of ILVAD: which image tokens are evidence, who looks at them, and what that changes."""

from __future__ import annotations

import torch
from torch import Tensor

# What is added to sums that divide.
_GUARD = 1e-8

# Values further from their mean than so many standard deviations are clamped.
_STD = 3.0


def evidence_map(means: Tensor, image_tokens: Tensor, *, tau: float, filtered: bool) -> Tensor:
    """How often image tokens become strongly attended from a layer to the next (arXiv 2605.20965).

    Args:
        means: attention to each token in each layer, `(batch, layers, tokens)`.
        image_tokens: `(batch, tokens)` bool.
        tau: how many times the mean of the image tokens of its layer a strong attention is.
        filtered: whether tokens count only whose mean over the layers is above that of all image tokens.

    Returns:
        In [0, 1], `(batch, tokens)` float32; 0 at other tokens, and at all where they are alike.
    """
    of_layers = _mean(means, image_tokens[:, None])
    strong = (means > tau * of_layers) & image_tokens[:, None]
    counts = (strong[:, 1:] & ~strong[:, :-1]).sum(dim=1).float()
    if filtered:
        overall = means.mean(dim=1)
        counts = counts * (overall > _mean(overall, image_tokens))
    clamped = _clamped(counts, image_tokens)
    low, high = _bounds(clamped, image_tokens)
    return torch.where(image_tokens & (high > low), (clamped - low) / (high - low).clamp_min(_GUARD), 0.0)


def evidence_of_rows(weights: Tensor, gain: Tensor, image: Tensor, *, heads: int) -> tuple[Tensor, Tensor]:
    """Which heads look at evidence, and how much these do (arXiv 2605.20965).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        gain: what the logarithm of a weight gains, `(batch, 1, 1, keys)`; 0 but at evidence.
        image: image tokens, in the same form, bool.
        heads: that are chosen.

    Returns:
        The heads with the largest share of their attention to the image on evidence, `(batch, heads, rows)`
        bool; and their mean attention to evidence, times its gain, `(batch, rows)`.
    """
    on_evidence, on_image = (weights * gain).sum(dim=-1), (weights * image).sum(dim=-1)
    # Where all that is left of the image is evidence, all heads are equal but for rounding.
    chosen = largest((on_evidence / (on_image + _GUARD)).round(decimals=4), heads)
    return chosen, (on_evidence * chosen).sum(dim=1) / heads


def text_factors(looks: Tensor, text_tokens: Tensor, *, beta: float) -> Tensor:
    """Factors of text tokens by how much these looked at evidence (arXiv 2605.20965).

    Args:
        looks: how much, `(batch, tokens)`.
        text_tokens: `(batch, tokens)` bool.
        beta: the least factor.

    Returns:
        `beta` to `1 + beta`; 1 at other tokens, and at all where they are alike.
    """
    low, high = _bounds(looks, text_tokens)
    factors = (_clamped(looks, text_tokens) - low) / torch.where(high > low, high - low, 1.0) + beta
    return torch.where(text_tokens & (high > low), factors, 1.0)


def reweigh(
    weights: Tensor,
    gain: Tensor,
    of_evidence: Tensor,
    factors: Tensor | None,
    text: Tensor,
    rows: Tensor,
    *,
    heads: int,
) -> Tensor:
    """Multiply weights on evidence and on text, and bring them back to a sum of 1 (arXiv 2605.20965).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        gain: see `evidence_of_rows`.
        of_evidence: heads whose image tokens are multiplied, `(batch, heads, rows)` bool.
        factors: of the text, for the heads with most attention to it, `(batch, 1, rows, keys)`; None: none.
        text: text after the image, `(batch, 1, 1, keys)` bool.
        rows: that are edited, `(batch, 1, rows)` bool; others and heads that are not chosen stay.
        heads: that are chosen for the text.
    """
    edited = torch.where(of_evidence[..., None], weights * gain.exp(), weights)
    chosen = of_evidence
    if factors is not None:
        of_text = largest((weights * text).sum(dim=-1), heads)
        edited = torch.where(of_text[..., None], edited * factors, edited)
        chosen = chosen | of_text
    edited = edited / (edited.sum(dim=-1, keepdim=True) + _GUARD)
    return torch.where((chosen & rows)[..., None], edited, weights)


def largest(values: Tensor, count: int) -> Tensor:
    """Heads with the largest values, the first of equals, `(batch, heads, rows)` bool.

    Args:
        values: in the same form.
    """
    order = values.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order[:, :count], True)


def _mean(values: Tensor, tokens: Tensor) -> Tensor:
    return (values * tokens).sum(dim=-1, keepdim=True) / tokens.sum(dim=-1, keepdim=True).clamp_min(1)


def _clamped(values: Tensor, tokens: Tensor) -> Tensor:
    mean, count = _mean(values, tokens), tokens.sum(dim=-1, keepdim=True)
    squares = ((values - mean).square() * tokens).sum(dim=-1, keepdim=True)
    std = (squares / (count - 1).clamp_min(1)).sqrt()
    return torch.minimum(torch.maximum(values, mean - _STD * std), mean + _STD * std)


def _bounds(values: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of some tokens, `(batch, 1)` each."""
    low = values.masked_fill(~tokens, torch.inf).amin(dim=-1, keepdim=True)
    return low, values.masked_fill(~tokens, -torch.inf).amax(dim=-1, keepdim=True)
