"""FLB: the logits of the first token stay in mind (First Logit Boosting)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import LogitsMixer, finite
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("flb")
@dataclass(frozen=True, kw_only=True)
class FLB(LogitsMixer):
    """First Logit Boosting (github.com/jiwooha20/FLB): the first token's logits are added to later ones.
    The image is freshest then.

    Args:
        gamma: weight that is approached, in [0, 100]; 0 leaves only the cut.
        decay: how fast it is, per token, in [0, 100].
        beta: plausibility cut, see `LogitsMixer`.
    """

    gamma: float = 0.3
    decay: float = 0.05

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="the logits of the first token are added",
        where="every step after the first",
        forwards=1.0,
        provenance="released code",
        paper="github.com/jiwooha20/FLB",
    )
    identity_parameters: ClassVar = {"gamma": 0, "beta": 0}
    search_space: ClassVar = {"gamma": Between(0.1, 1.5)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0, 100)
        check_range("decay", self.decay, 0, 100)

    def inactive_reason(self, context: DecodeContext) -> str:
        if context.step == 0:
            return "it acts from the second new token on, and there was one alone"
        return super().inactive_reason(context)

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        # Beams of a prompt begin with the same logits, so that reordering them changes nothing.
        first: Tensor = context.state.setdefault((self, "first"), finite(logits))
        return logits + self.gamma * -math.expm1(-self.decay * context.step) * first
