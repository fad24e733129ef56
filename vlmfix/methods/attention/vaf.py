"""VAF: scores of image tokens amplified, those of the system prompt weakened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.methods.attention.base import ScoreEdit
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("vaf")
@dataclass(frozen=True, kw_only=True)
class VAF(ScoreEdit):
    """Visual Amplification Fusion, of ClearSight (arXiv 2503.13107).

    After the last image and in all new rows, scores are multiplied before the softmax, those of image tokens
    and those of the tokens before the first image. They keep their sign, so that negative scores of
    image tokens are pushed further down.

    Args:
        enhance: factor on scores of image tokens, above 0 and at most 100.
        suppress: factor on scores of tokens before the first image, above 0 and at most 100; 1 in both
            leaves the model as it is.
    """

    enhance: float = 1.15
    suppress: float = 0.95

    info = MethodInfo(
        stage="attention",
        changes="scores of image tokens and of the system prompt, multiplied",
        where="text rows after the image and new rows; layers 9 to 14 of 32",
        forwards=1.0,
        provenance="released code",
        paper="2503.13107",
    )
    identity_parameters: ClassVar = {"enhance": 1, "suppress": 1}
    search_space: ClassVar = {"enhance": Between(1, 2), "suppress": Between(0.6, 1)}
    last_row_only: ClassVar = False
    published_layers: ClassVar = (9, 15)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("enhance", "suppress"):
            value = getattr(self, name)
            check_range(name, value, 0, 100)
            if value == 0:
                raise ValueError(
                    f"{name} is 0; it must be above 0, since scores of 0 do not remove a token but give it "
                    "middling attention"
                )

    def factors(self, image_tokens: Tensor, system_tokens: Tensor) -> Tensor:
        return column_factors(image_tokens, system_tokens, enhance=self.enhance, suppress=self.suppress)

    @property
    def formula(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.mul


def column_factors(image_tokens: Tensor, system_tokens: Tensor, *, enhance: float, suppress: float) -> Tensor:
    """What multiplies the scores of each key (ClearSight, arXiv 2503.13107).

    Args:
        image_tokens: `(batch, keys)` bool.
        system_tokens: those before the first image, `(batch, keys)` bool.
        enhance: factor at image tokens.
        suppress: factor at system tokens.

    Returns:
        `(batch, keys)` float32, 1 at all other keys.
    """
    return torch.where(image_tokens, enhance, torch.where(system_tokens, suppress, 1.0))
