"""Shares of attention, what the image gives to a token, and two distributions compared, as formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = ("first token", "system", "image", "image sinks", "question", "answer")
"""What attention is divided among; the keys of `group_sums` are numbered in this order."""

FIRST, SYSTEM, IMAGE, SINKS, QUESTION, ANSWER = range(len(GROUPS))


def group_sums(weights: Tensor, groups: Tensor) -> Tensor:
    """Attention on each group of keys.

    Args:
        weights: after the softmax, `(..., keys)`.
        groups: number of the group of each key, see `GROUPS`, `(keys,)` int64.

    Returns:
        `(..., groups)`; it sums to less than 1 where a method or a model drops mass.
    """
    members = torch.nn.functional.one_hot(groups, len(GROUPS)).to(weights)
    return weights @ members


def image_entropy(weights: Tensor) -> Tensor:
    """Entropy of attention inside the image, divided by its largest value: 0 on one token, 1 if even.

    Args:
        weights: on the image tokens, `(..., tokens)`.

    Returns:
        `(...)`; 0 for one token, NaN without any mass.
    """
    if weights.shape[-1] < 2:
        return torch.zeros_like(weights[..., 0])
    inside = weights / weights.sum(dim=-1, keepdim=True)
    entropy: Tensor = torch.special.entr(inside).sum(dim=-1)
    return entropy / math.log(weights.shape[-1])


def phrase_map(word_maps: Tensor, content: Sequence[bool]) -> Tensor:
    """Mean of the maps of the content words of a phrase, `(tokens,)`; of all words where none is one.

    After RefAM (arXiv 2509.22650), which leaves stop words out of maps in diffusion transformers; for a
    language model that is a reconstruction.

    Args:
        word_maps: `(words, tokens)`.
        content: which of the words are no function words.
    """
    kept = torch.tensor([*content], dtype=torch.bool, device=word_maps.device)
    return word_maps[kept if bool(kept.any()) else ~kept].mean(dim=0)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of distributions given as logarithms, `(..., vocabulary)`; tokens that p forbids
    count nothing."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -math.inf, 0.0, terms).sum(dim=-1)


class Choice(NamedTuple):
    """What two sets of logits say where they part.

    Args:
        plain_token: the likeliest without the method.
        method_token: the likeliest with it.
        plain_margin: logit of `plain_token` less that of `method_token`, without the method.
        method_margin: logit of `method_token` less that of `plain_token`, with it; both are 0 or more.
        divergence: KL(method || plain) in nats.
    """

    plain_token: int
    method_token: int
    plain_margin: float
    method_margin: float
    divergence: float


def choice(plain: Tensor, method: Tensor) -> Choice:
    """Compare the next token under two sets of logits, `(vocabulary,)` each."""
    first, other = int(plain.argmax()), int(method.argmax())
    return Choice(
        first,
        other,
        float(plain[first] - plain[other]),
        float(method[other] - method[first]),
        float(kl_divergence(method.log_softmax(dim=-1), plain.log_softmax(dim=-1))),
    )
