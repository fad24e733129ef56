"""Sampling that depends on nothing but the sample: not on its batch, its place or its worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

_GOLDEN, _FIRST, _SECOND = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def seed_of(seed: int, sample: str, repeat: int) -> int:
    """The seed of one repeat of a sample in a run, a 63-bit number."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{sample}/{repeat}".encode()).digest()[:8], "big") >> 1


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling.

    The arg-max of logits plus Gumbel noise is a draw from their softmax. The noise is a function of the seed
    of the sequence, the step and the token, so that a batch draws what its sequences draw alone.

    Args:
        seeds: one a sequence, 0 or more.
        temperature: above 0.
        top_p: share of probability that is kept, in (0, 1].
        top_k: tokens that are kept; 0 keeps all.
    """

    def __init__(
        self, seeds: Sequence[int], *, temperature: float, top_p: float = 1.0, top_k: int = 0
    ) -> None:
        self.seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self.temperature = temperature
        self.warpers: list[LogitsProcessor] = [TopKLogitsWarper(top_k)] if top_k else []
        self.warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with noise, `(batch, vocabulary)`."""
        scores = scores.float() / self.temperature
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        noise = gumbel_noise(self.seeds.to(scores.device), self._step, scores.shape[-1])
        self._step += 1
        return scores + noise.to(scores.dtype)

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the sequences, `(sequences,)` int64."""
        self.seeds = self.seeds[rows]


class SamplingByRow(LogitsProcessor):
    """Sampling in which each sequence of a batch has settings of its own, and some may be greedy.

    Args:
        draws: `(seed, temperature, top_p)` of each sequence; at temperature 0 it is greedy.
    """

    def __init__(self, draws: Sequence[tuple[int, float, float]]) -> None:
        rows: dict[tuple[float, float], list[int]] = {}
        for row, (_, temperature, top_p) in enumerate(draws):
            if temperature:
                rows.setdefault((temperature, top_p), []).append(row)
        self._groups = [
            (own, SeededSampling([draws[row][0] for row in own], temperature=temperature, top_p=top_p))
            for (temperature, top_p), own in rows.items()
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores, with noise for those that are drawn, `(batch, vocabulary)`."""
        if not self._groups:
            return scores
        drawn = scores.to(torch.float32, copy=True)
        for rows, sampling in self._groups:
            drawn[rows] = sampling(input_ids[rows], scores[rows])
        return drawn


def gumbel_noise(seeds: Tensor, step: int, size: int) -> Tensor:
    """Standard Gumbel noise by SplitMix64, `(batch,)` int64 seeds -> `(batch, size)` float64."""
    steps = torch.tensor(step + 1, device=seeds.device)
    keys = _mixed(seeds + _GOLDEN * steps)[:, None]
    bits = _mixed(keys + _GOLDEN * torch.arange(1, size + 1, device=seeds.device))
    uniform = (_shifted(bits, 12).double() + 0.5) / 2**52  # in (0, 1): one more bit would be rounded to 1
    return -torch.log(-torch.log(uniform))


def _mixed(values: Tensor) -> Tensor:
    """The output function of SplitMix64; int64 wraps around as uint64 does."""
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    shifted: Tensor = (values >> bits) & (2 ** (64 - bits) - 1)
    return shifted
