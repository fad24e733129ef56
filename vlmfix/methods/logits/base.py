"""What contrastive methods share: the combination of logits and the plausibility cut."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.in_place import check_edit
from vlmfix.engine.kl import RULED_OUT
from vlmfix.engine.state import Branch
from vlmfix.methods.base import Method
from vlmfix.methods.logits.branch_prompts import without_image
from vlmfix.methods.validation import check_flag, check_range


@dataclass(frozen=True, kw_only=True)
class LogitsMixer(Method, ABC):
    """Says what the logits of the next token are; tokens that are not plausible are ruled out (`rule_out`).

    A subclass says how logits are mixed (`combine`). Prompts without an image keep theirs, unless it needs
    none.

    Args:
        beta: tokens less likely than this share of the likeliest one are ruled out, in [0, 1]; 0 rules out
            none.
    """

    beta: float = 0.1

    keeps_prefix: ClassVar = True

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1)

    @abstractmethod
    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """Mixed logits of all tokens, `(batch, vocabulary)` float32, before the cut.

        Args:
            logits: of the prompts.
            branches: of each branch and of each extra hidden state, in the same form.
        """

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if self.needs_image and not context.layout.has_image:
            return logits
        mixed = self.combine(context, logits, branches)
        check_edit(self, "combine", mixed, logits)
        edited = rule_out(logits, mixed, plausible(logits, self.beta))
        if self.needs_image:
            edited = torch.where(self.takes(context).to(logits.device)[:, None], edited, logits)
        return edited

    def inactive_reason(self, context: DecodeContext) -> str:
        return (
            "what is mixed in at this strength leaves the distribution of the next token as it is, and "
            f"beta={self.beta:g} rules no token out; raise the strength or beta"
        )


@dataclass(frozen=True, kw_only=True)
class Contrastive(LogitsMixer):
    """Compares the logits of a prompt with those of other forms of it, its `branches`.

    Args:
        fused: whether branches are decoded in one pass with the prompts; False: in a second pass, which needs
            less memory at a time.
    """

    fused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("fused", self.fused)


@dataclass(frozen=True, kw_only=True)
class AgainstText(Contrastive, ABC):
    """Compares with the prompts without their images; a prompt that holds nothing else is left as it is."""

    @property
    @abstractmethod
    def contrasts(self) -> bool:
        """Whether its numbers leave more than the cut."""

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self.contrasts or not context.layout.has_image:
            return ()
        return [without_image(context, self, inputs_embeds, decoder_inputs, fused=self.fused)]


@dataclass(frozen=True, kw_only=True)
class ScaledContrast(Contrastive, ABC):
    """Compares with other forms of a prompt at a strength.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
    """

    alpha: float = 1.0

    identity_parameters: ClassVar = {"alpha": 0, "beta": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 100)

    @property
    def contrasts(self) -> bool:
        """Whether its numbers leave more than the cut."""
        return self.alpha != 0

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return contrast(logits, branches[0], self.alpha) if branches else logits


def contrast(logits: Tensor, branch: Tensor, alpha: float | Tensor) -> Tensor:
    """Move logits away from those of a branch (arXiv 2311.16922, equation 3).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the branch; infinite ones count as the smallest finite one of their row.
        alpha: strength, one for all or `(batch, 1)`.

    Returns:
        `logits + alpha * (logits - branch)`, minus infinity where `logits` is.
    """
    return torch.where(logits == -torch.inf, logits, logits + alpha * (logits - finite(branch)))


def plausible(logits: Tensor, beta: float) -> Tensor:
    """Tokens whose probability is at least `beta` times that of the likeliest one (arXiv 2210.15097).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        beta: in [0, 1]; 0 keeps everything.
    """
    if beta == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    return logits >= logits.amax(dim=-1, keepdim=True) + math.log(beta)


def rule_out(logits: Tensor, edited: Tensor, kept: Tensor) -> Tensor:
    """Edited logits of the tokens that stay possible; the others far below, in the order that they had.

    They stay finite, so that processors of `generate` may ban all that is possible, as `min_new_tokens` does
    where only the end is plausible: the best of the others is left then.

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        edited: in the same form.
        kept: which tokens stay possible, `(batch, vocabulary)` bool; one in each row at least.
    """
    lowest = edited.masked_fill(~kept, torch.inf).amin(dim=-1, keepdim=True)
    behind = logits - logits.amax(dim=-1, keepdim=True) + (lowest - RULED_OUT)
    return torch.where(kept, edited, behind)


def finite(logits: Tensor) -> Tensor:
    """Logits whose infinite ones are the smallest finite one of their row."""
    banned = logits == -torch.inf
    lowest = logits.masked_fill(banned, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(banned, lowest, logits)
