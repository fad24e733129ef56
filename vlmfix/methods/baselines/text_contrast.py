"""Control: away from the prompt without its image, with nothing of the method under test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import AgainstText, ScaledContrast
from vlmfix.methods.registry import register_method


@register_method("baseline.text_contrast")
@dataclass(frozen=True, kw_only=True)
class BaselineTextContrast(ScaledContrast, AgainstText):
    """Contrast with the prompt without its image (arXiv 2504.10020): the gain of less language prior, without
    the branch of the method under test. A prompt that holds nothing but an image is left as it is.

    Args:
        alpha: see `ScaledContrast`.
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
