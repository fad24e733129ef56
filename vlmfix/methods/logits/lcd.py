"""LCD: away from the language prior, the more the surer it is (arXiv 2408.04664)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import AgainstText, ScaledContrast, contrast
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between


@register_method("lcd")
@dataclass(frozen=True, kw_only=True)
class LCD(ScaledContrast, AgainstText):
    """Language Contrastive Decoding (arXiv 2408.04664): away from the prompt without its image, by a weight
    that grows as the entropy of that branch falls.

    The released code asks a separate language model; here the text decoder of the model itself is asked, so
    that no second checkpoint is needed. Hence this is a reconstruction. A prompt that holds nothing but an
    image is left as it is.

    Args:
        alpha: weight at an entropy of 1 nat, in [0, 100]; 0 leaves only the cut.
        beta: plausibility cut, see `Contrastive`.
        fused: see `Contrastive`.
    """

    alpha: float = 2.0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits without the image, by how sure these are",
        where="every step",
        forwards=2.0,
        provenance="reconstruction",
        paper="2408.04664",
    )
    search_space: ClassVar = {"alpha": Between(0.25, 3)}

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return language_contrast(logits, branches[0], self.alpha) if branches else logits


def language_contrast(logits: Tensor, branch: Tensor, alpha: float) -> Tensor:
    """Contrast of log-probabilities with the weight `alpha / entropy` (arXiv 2408.04664).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the prompts without image; its entropy is in nats, and counts as 0.0001 at least.
        alpha: 0 or more.
    """
    prior = branch.log_softmax(dim=-1)
    entropy = -torch.where(prior == -torch.inf, 0.0, prior.exp() * prior).sum(dim=-1, keepdim=True)
    return contrast(logits.log_softmax(dim=-1), prior, alpha / entropy.clamp_min(1e-4))
