"""What contrastive methods share: the combination of logits, the plausibility cut, and their branches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmfix.methods.base import Method, check_flag, check_range
from vlmfix.runtime.branches import Branch
from vlmfix.runtime.run import Run

# Branch logits that differ by less, once their mean is removed, change nothing.
_EQUAL = 1e-6


@dataclass(frozen=True, kw_only=True)
class Mixing(Method, ABC):
    """Says what the logits of the next token are; tokens that are not plausible are ruled out.

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
    def combine(self, run: Run, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        """Mixed logits of all tokens, `(batch, vocabulary)` float32, before the cut.

        Args:
            logits: of the prompts.
            branches: of each branch, in the same form.
        """

    def edit_logits(self, run: Run, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if self.needs_image and not run.layout.has_image:
            return logits
        edited = torch.where(plausible(logits, self.beta), self.combine(run, logits, branches), -torch.inf)
        if self.needs_image:
            with_image = run.layout.image_tokens.any(dim=1).to(logits.device)
            edited = torch.where(with_image[:, None], edited, logits)
        run.count(self, None, differ(logits, edited).long(), 1)
        return edited


@dataclass(frozen=True, kw_only=True)
class Contrastive(Mixing):
    """Compares the logits of a prompt with those of other forms of it, its `branches`.

    Args:
        fused: whether branches are decoded in one pass with the prompts; False: in a second pass, which needs
            less memory at a time.
    """

    fused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("fused", self.fused)


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


def finite(logits: Tensor) -> Tensor:
    """Logits whose infinite ones are the smallest finite one of their row."""
    banned = logits == -torch.inf
    lowest = logits.masked_fill(banned, torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(banned, lowest, logits)


def differ(logits: Tensor, edited: Tensor) -> Tensor:
    """In which rows two logits give different distributions, `(batch,)` bool."""
    same = (logits.log_softmax(dim=-1) - edited.log_softmax(dim=-1)).nan_to_num(nan=0.0, posinf=torch.inf)
    return same.abs().amax(dim=-1) > _EQUAL


def without_image(run: Run, inputs_embeds: Tensor, *, fused: bool) -> Branch:
    """The prompts without their image tokens.

    Args:
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        fused: see `Branch`.
    """
    text, index = run.layout.select(~run.layout.image_tokens)
    index = index.to(inputs_embeds.device)
    embeddings = inputs_embeds.gather(1, index[..., None].expand(-1, -1, inputs_embeds.shape[-1]))
    return Branch(embeddings, text.real_tokens, fused=fused)


def with_other_images(
    run: Run,
    images: Sequence[Mapping[str, Tensor]],
    inputs_embeds: Tensor,
    decoder_inputs: Mapping[str, Any],
    *,
    fused: bool,
) -> Branch:
    """The prompts about other images of the same shapes.

    Args:
        images: in the order of the prompts, see `vlmfix.runtime.vision.split_images`.
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        decoder_inputs: what else the text decoder was given.
        fused: see `Branch`.
    """
    assert run.encode_images is not None
    with torch.no_grad():
        encoded = run.encode_images(images)
    prompts = run.layout.image_tokens[:: run.copies].to(inputs_embeds.device)

    def placed(features: list[Tensor], like: Tensor) -> Tensor:
        """Image features in their places, for every copy of a prompt."""
        filled = like.clone()
        filled[prompts] = torch.cat(features).to(filled)
        return filled.repeat_interleave(run.copies, dim=0)

    own = inputs_embeds[:: run.copies]
    embeddings = placed([image.features for image in encoded], own)
    further: dict[str, Any] = {}
    visual = decoder_inputs.get("visual_pos_masks")
    if visual is not None:
        layers = zip(*(image.injected for image in encoded), strict=True)
        filled = [placed(list(features), torch.zeros_like(own)) for features in layers]
        further = {
            "visual_pos_masks": visual,
            "deepstack_visual_embeds": [each[visual.to(each.device)] for each in filled],
        }
    positions = decoder_inputs.get("position_ids")
    return Branch(embeddings, run.layout.real_tokens, positions, further, fused=fused)
