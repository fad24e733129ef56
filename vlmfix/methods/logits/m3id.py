"""M3ID: the longer the answer, the more the image counts (arXiv 2403.14003)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import AgainstText, contrast
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("m3id")
@dataclass(frozen=True, kw_only=True)
class M3ID(AgainstText):
    """Multi-Modal Mutual-Information Decoding (arXiv 2403.14003): away from the prompt without its image.
    The weight of this grows with the answer.

    There is no official code. Tokens are counted from 1, so that the first one is touched, too; ports that
    count from 0 leave one-word answers to the plausibility cut alone. A prompt that holds nothing but an
    image is left as it is. In the paper it acts where no token has a probability of 0.3 or more, without a
    cut: `gate="top1:0.7", beta=0`, with `offset` 0 for captions and 10 for yes/no questions.

    Args:
        decay: growth of the weight, `exp(decay * tokens) - 1`, in [0, 1]; 0 leaves only the cut.
        offset: added to the number of tokens, in [0, 1000].
        beta: plausibility cut, see `Contrastive`.
        fused: see `Contrastive`.
    """

    decay: float = 0.02
    offset: float = 0.0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits without the image, more at each token",
        where="every step",
        forwards=2.0,
        provenance="paper",
        paper="2403.14003",
    )
    identity_parameters: ClassVar = {"decay": 0, "beta": 0}
    search_space: ClassVar = {"decay": Between(0.005, 0.2, log=True)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("decay", self.decay, 0, 1)
        check_range("offset", self.offset, 0, 1000)

    @property
    def contrasts(self) -> bool:
        return self.decay != 0

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        return mutual_information(
            logits,
            branches[0],
            weight=math.expm1(self.decay * (context.step + 1 + self.offset)),
        )


def mutual_information(logits: Tensor, branch: Tensor, *, weight: float) -> Tensor:
    """`lp + weight * (lp - lp1)` of the log-probabilities (arXiv 2403.14003).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the prompts without image.
        weight: 0 or more.
    """
    return contrast(logits.log_softmax(dim=-1), branch.log_softmax(dim=-1), weight)
