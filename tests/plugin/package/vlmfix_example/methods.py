"""A method of another package, by public names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix import DecodeContext, Method, MethodInfo, register_method


@register_method("second_best")
@dataclass(frozen=True, kw_only=True)
class SecondBest(Method):
    """Makes the likeliest token less likely.

    Args:
        penalty: what its logit loses, in nats, 0 or more; 0 leaves the model as it is.
    """

    penalty: float = 1000.0

    info = MethodInfo(
        stage="logits",
        changes="logits: of the likeliest token",
        where="every step",
        forwards=1.0,
    )
    identity_parameters: ClassVar = {"penalty": 0}
    needs_image: ClassVar = False

    def __post_init__(self) -> None:
        if self.penalty < 0:
            raise ValueError(f"penalty is {self.penalty}; it must be 0 or more")

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        edited = logits.scatter_add(-1, likeliest, logits.new_full(likeliest.shape, -self.penalty))
        context.count(self, None, (edited != logits).any(dim=-1).long(), 1)
        return edited
