"""Control: away from the prompt without its image, with nothing of the method under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledAgainstText, contrast
from vlmfix.methods.registry import register_method


@register_method("baseline.text_contrast")
@dataclass(frozen=True, kw_only=True)
class BaselineTextContrast(ScaledAgainstText):
    """Contrast with the prompt without its image (arXiv 2504.10020): the gain of less language prior, without
    the branch of the method under test. A prompt that holds nothing but an image is left as it is.

    Args:
        alpha: see `ScaledAgainstText`.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    info: ClassVar = MethodInfo(
        stage="baseline",
        changes="away from the logits without the image",
        where="every step",
        forwards=2.0,
        provenance="reconstruction",
        paper="2504.10020",
    )

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return contrast(logits, branches[0], self.alpha) if branches else logits
