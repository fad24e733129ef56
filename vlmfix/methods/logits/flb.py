"""FLB: the logits of the first token stay in mind (First Logit Boosting)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix.engine.context import Run
from vlmfix.methods.base import Card
from vlmfix.methods.logits.base import Mixing, finite
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range


@register_method("flb")
@dataclass(frozen=True, kw_only=True)
class FLB(Mixing):
    """First Logit Boosting (github.com/jiwooha20/FLB): the first token's logits are added to later ones.
    The image is freshest then.

    Args:
        gamma: weight that is approached, in [0, 100]; 0 leaves only the cut.
        decay: how fast it is, per token, in [0, 100].
        beta: plausibility cut, see `Mixing`.
    """

    gamma: float = 0.3
    decay: float = 0.05

    card: ClassVar = Card(
        level="logits",
        changes="logits: those of the first token are added",
        where="every step behind the first",
        forwards=1.0,
        fidelity="released code",
        paper="github.com/jiwooha20/FLB",
    )
    neutral: ClassVar = {"gamma": 0, "beta": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0, 100)
        check_range("decay", self.decay, 0, 100)

    def inactive_reason(self, run: Run) -> str:
        if run.step == 0:
            return "it acts from the second new token on, and there was one alone"
        return super().inactive_reason(run)

    def combine(self, run: Run, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        # Beams of a prompt begin with the same logits, so that reordering them changes nothing.
        first = run.state.setdefault((self, "first"), finite(logits))
        return logits + self.gamma * -math.expm1(-self.decay * run.step) * first
