"""How far edits move the distribution of the next token, measured where both are known."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logits that differ by less, once their mean is removed, give the same distribution.
_EQUAL = 1e-6

# Distributions that are nearer than this, in nats, are the same.
_STILL = 1e-6

RULED_OUT = 1000.0
"""How far tokens that a method rules out lie below all others, in nats: no sampling finds them, and when all
others are banned the best of them is left."""


class Divergence(NamedTuple):
    """Sums of KL(edited || base) in nats over steps; `merged` adds steps, sequences, runs and workers up.

    Args:
        kl: the sum.
        kl_cut: sum of what ruling tokens out alone gives of it.
        kl_max: the largest one.
        argmax_changed: steps in which the likeliest token became another one.
        kl_steps: steps in which it is known.
    """

    kl: float = 0.0
    kl_cut: float = 0.0
    kl_max: float = 0.0
    argmax_changed: int = 0
    kl_steps: int = 0

    def merged(self, other: Divergence) -> Divergence:
        """Both together."""
        return Divergence(
            self.kl + other.kl,
            self.kl_cut + other.kl_cut,
            max(self.kl_max, other.kl_max),
            self.argmax_changed + other.argmax_changed,
            self.kl_steps + other.kl_steps,
        )

    @property
    def is_still(self) -> bool:
        """Whether no step moved by more than what rounding does."""
        return self.kl_steps > 0 and self.kl_max < _STILL

    @property
    def figures(self) -> dict[str, Any]:
        """What activity shows of it, by name; None where it is not known, or where no token was ruled out."""
        known, steps = bool(self.kl_steps), self.kl_steps or 1
        return {
            "argmax_changed": self.argmax_changed / steps if known else None,
            "kl_mean": self.kl / steps if known else None,
            "kl_max": self.kl_max if known else None,
            "kl_cut": self.kl_cut / steps if self.kl_cut else None,
            "kl_steps": self.kl_steps if known else None,
        }


class DivergenceCounts:
    """The same on the device, one a sequence; read once at the end.

    Args:
        rows: number of sequences.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self._sums = torch.zeros(rows, 5, device=device)
        self._now: Tensor | None = None

    def compare(self, base: Tensor, edited: Tensor) -> None:
        """Logits of the next token in the current step; see `divergence`."""
        self._now = divergence(base, edited)

    def end_step(self, counted: Tensor) -> None:
        """Sum up a step over the sequences that count, `(rows,)` bool."""
        if self._now is None:
            return
        kl, cut, changed = torch.where(counted[:, None], self._now.to(counted.device), 0.0).unbind(dim=1)
        before = self._sums
        self._sums = before + torch.stack([kl, cut, torch.zeros_like(kl), changed, counted.float()], dim=1)
        self._sums[:, 2] = before[:, 2].maximum(kl)
        self._now = None

    def add_part(self, part: DivergenceCounts, rows: Tensor, places: Tensor) -> None:
        """Add the sums of some sequences, `(sequences,)` int64, which stand at these places of the part."""
        before, new = self._sums[rows], part._sums[places]
        self._sums[rows] = before + new
        self._sums[rows, 2] = before[:, 2].maximum(new[:, 2])

    def close(self) -> list[Divergence]:
        """The sums of each sequence as plain numbers."""
        return [
            Divergence(kl, cut, largest, int(changed), int(steps))
            for kl, cut, largest, changed, steps in self._sums.tolist()
        ]


def differ(logits: Tensor, edited: Tensor) -> Tensor:
    """In which rows two logits give different distributions, `(batch,)` bool."""
    same = (logits.log_softmax(dim=-1) - edited.log_softmax(dim=-1)).nan_to_num(nan=0.0, posinf=torch.inf)
    return same.abs().amax(dim=-1) > _EQUAL


def divergence(base: Tensor, edited: Tensor) -> Tensor:
    """How far an edit of next-token logits moves their distributions.

    Args:
        base: without the edit, `(rows, vocabulary)` float32.
        edited: with it, in the same form; tokens that are ruled out lie `RULED_OUT` below the others.

    Returns:
        `(rows, 3)`: KL(edited || base) in nats; the part of it that ruling tokens out alone gives, -ln of the
        probability that the others have without the edit; 1.0 where the likeliest token became another one.
    """
    before, after = base.log_softmax(dim=-1), edited.log_softmax(dim=-1)
    kept = after > -RULED_OUT / 2
    moved = torch.where(kept, after.exp() * (after - before), 0.0).sum(dim=-1)
    ruled_out = (~kept & (before > -torch.inf)).any(dim=-1)
    left = before.masked_fill(~kept, -torch.inf).logsumexp(dim=-1)
    cut = torch.where(ruled_out, -left, 0.0)
    changed = before.argmax(dim=-1) != after.argmax(dim=-1)
    return torch.stack([moved.clamp_min(0.0), cut.clamp_min(0.0), changed.float()], dim=1)
