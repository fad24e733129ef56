"""Control: away from the prompt without its image, with nothing of the method under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import AgainstText, contrast
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range


@register_method("baseline.text_contrast")
@dataclass(frozen=True, kw_only=True)
class BaselineTextContrast(AgainstText):
    """Contrast with the prompt without its image (arXiv 2504.10020): the gain of less language prior, without
    the branch of the method under test. A prompt that holds nothing but an image is left as it is.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    alpha: float = 1.0

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="away from the logits without the image",
        where="every step",
        forwards=2.0,
        provenance="reconstruction",
        paper="2504.10020",
    )
    identity_parameters: ClassVar = {"alpha": 0, "beta": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)

    @property
    def contrasts(self) -> bool:
        return self.alpha != 0

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return contrast(logits, branches[0], self.alpha) if branches else logits
