"""Fusion of answers: how well those of several views agree, and one token from the logits of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlmfix.engine.tokens import generation_setting
from vlmfix.errors import UnsupportedError

# Other ways of `generate` to cut a distribution, which would have to act on the fused one.
_OTHER_CUTS = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}


def divergences(distributions: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of each distribution to the others, in nats.

    Args:
        distributions: `(views, vocabulary)`, each of sum 1.

    Returns:
        `(views,)` float64 in [0, ln 2]; 0 of a single view.
    """
    shares = distributions.double()
    own = torch.special.entr(shares).sum(dim=-1)
    between = torch.stack([torch.special.entr((each + shares) / 2).sum(dim=-1) for each in shares])
    pairs: Tensor = (between - (own[:, None] + own) / 2).clamp_min(0)
    return pairs.sum(dim=-1) / max(1, len(shares) - 1)


def agreement_weights(divergence: Tensor, temperature: float) -> Tensor:
    """Weights of views, which sum to 1: the less one diverges from the others, the more it counts."""
    return torch.softmax(-divergence / temperature, dim=-1)


def fuse_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits of one token from those of all views.

    Args:
        logits: `(views, vocabulary)`.
        weights: `(views,)`, which sum to 1.

    Returns:
        `(vocabulary,)` float32, weighted means of log-probabilities, whose softmax is that of the weighted
        means of the logits.
    """
    return weights.float() @ logits.float().log_softmax(dim=-1)


class AnswerDistribution(LogitsProcessor):
    """Sees what a batch of answers is drawn from, averaged over their steps; changes nothing.

    Args:
        end_tokens: ids that end an answer; the step that chooses one counts, those after it do not. None:
            nothing ends it.
    """

    def __init__(self, end_tokens: Tensor | None) -> None:
        self.end_tokens = end_tokens
        self._sums: Tensor | None = None
        self._steps: Tensor | None = None
        self._prompt = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        shares = scores.float().softmax(dim=-1)
        if self._sums is None or self._steps is None:
            self._sums, self._steps = torch.zeros_like(shares), shares.new_zeros(len(shares), 1)
            self._prompt = input_ids.shape[1]
        goes_on = torch.ones_like(self._steps)
        if self.end_tokens is not None:
            ended = torch.isin(input_ids[:, self._prompt :], self.end_tokens.to(input_ids.device))
            goes_on = (~ended.any(dim=1, keepdim=True)).float()
        self._sums += goes_on * shares
        self._steps += goes_on
        return scores

    @property
    def mean(self) -> Tensor:
        """`(batch, vocabulary)` float32."""
        assert self._sums is not None
        assert self._steps is not None
        return self._sums / self._steps


class FusedScores(LogitsProcessor):
    """Gives every row of a batch the same scores, fused from all, so that all rows write the same tokens.

    Args:
        weights: of the rows.
        processors: which act on the fused scores; what they see as the tokens so far is the first row.
        sampling: what cuts the fused distribution before a token is drawn from it, once for all rows; None:
            nothing is drawn.
    """

    def __init__(
        self, weights: Tensor, processors: Sequence[LogitsProcessor], sampling: Sequence[Any] | None
    ) -> None:
        self.weights = weights
        self.processors = processors
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        fused = fuse_logits(scores, self.weights.to(scores.device))[None]
        for each in (*self.processors, *(self.sampling or ())):
            fused = each(input_ids[:1], fused)
        if self.sampling is not None:
            drawn = torch.multinomial(fused.softmax(dim=-1), 1)
            fused = torch.full_like(fused, -torch.inf).scatter(1, drawn, 0.0)
        return fused.repeat(len(scores), 1)


def sampling_of(model: PreTrainedModel, generate_kwargs: Mapping[str, Any], method: str) -> list[Any] | None:
    """What cuts a distribution before a token is drawn from it, in the order of `generate`; None: nothing is
    drawn.

    Args:
        generate_kwargs: of a `generate` call.
        method: for messages.

    Raises:
        UnsupportedError: beams, several answers, or a way to cut that is not known here.
    """

    def setting(name: str) -> Any:
        return generation_setting(model, generate_kwargs, name)

    for name in ("num_beams", "num_return_sequences"):
        if (setting(name) or 1) > 1:
            raise UnsupportedError(
                f"{method} decodes all views of a picture as one, which {name}={setting(name)} does not "
                f"follow; leave {name} at 1"
            )
    if not setting("do_sample"):
        return None
    for name, off in _OTHER_CUTS.items():
        if setting(name) not in (None, off):
            raise UnsupportedError(
                f"{method} samples by temperature, top_k, top_p and min_p, and not by {name}; leave it out"
            )
    temperature, top_k, top_p, min_p = map(setting, ("temperature", "top_k", "top_p", "min_p"))
    cuts: list[Any] = []
    if temperature not in (None, 1.0):
        cuts.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        cuts.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        cuts.append(TopPLogitsWarper(float(top_p)))
    if min_p is not None:
        cuts.append(MinPLogitsWarper(float(min_p)))
    return cuts
