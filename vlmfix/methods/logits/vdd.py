"""VDD: away from what the model would say without having seen the image (arXiv 2403.05262)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast, contrast, finite
from vlmfix.methods.logits.branch_prompts import without_image
from vlmfix.methods.logits.composed_prompts import Replacement, rewritten
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, OneOf
from vlmfix.methods.validation import check_choice
from vlmfix.models.profiles import Profile


@register_method("vdd")
@dataclass(frozen=True, kw_only=True)
class VDD(ScaledContrast):
    """Visual Debias Decoding (arXiv 2403.05262): away from prompts that lost their image.

    One of them has nothing in its place, the other one unknown token an image; the released scripts take the
    mean of the logits of both. Code and scripts differ in the strength (0.5 or 1); this is the scripts'.
    `beta` is the default of the released code; its scripts pass 0.2. Unless "unknown" is
    the reference, a prompt that holds nothing but an image is left as it is.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        reference: "no_image", "unknown", or "both".
        unknown_token_id: what stands for an image in "unknown"; None: from the checkpoint's profile.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    reference: str = "both"
    unknown_token_id: int | None = None

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits without the image and with an unknown one",
        where="every step",
        forwards=3.0,
        provenance="released code",
        paper="2403.05262",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 2), "reference": OneOf(("both", "no_image"))}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reference", self.reference, ("both", "no_image", "unknown"))
        token = self.unknown_token_id
        if token is not None and (type(token) is not int or token < 0):
            raise ValueError(f"unknown_token_id is {token!r}; it must be a token id, 0 or more")

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        token = self.unknown_token_id
        if token is None and profile is not None:
            token = profile.get("unknown_token_id")
        if self.reference == "no_image" or self.alpha == 0:
            return self
        vocabulary = config.get_text_config().vocab_size
        if token is None:
            raise ValueError(
                "no unknown token is known for this checkpoint; pass unknown_token_id, or "
                "reference='no_image', which needs none"
            )
        if token >= vocabulary:
            raise ValueError(
                f"unknown_token_id is {token}; the tokens of this model go from 0 to {vocabulary - 1}"
            )
        return dataclasses.replace(self, unknown_token_id=token)

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self.contrasts or not context.layout.has_image:
            return ()
        branches = []
        if self.reference != "unknown":
            branches.append(without_image(context, self, inputs_embeds, decoder_inputs, fused=self.fused))
        if self.reference != "no_image":
            assert self.unknown_token_id is not None
            unknown = [
                [Replacement(start, stop, [self.unknown_token_id]) for start, stop in images]
                for images in image_spans(context)
            ]
            branches.append(rewritten(context, inputs_embeds, decoder_inputs, unknown, fused=self.fused))
        return branches

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return debias(logits, branches, self.alpha) if branches else logits


def debias(logits: Tensor, branches: Sequence[Tensor], alpha: float) -> Tensor:
    """Contrast with the mean of the raw logits of some branches (arXiv 2403.05262).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branches: of each branch, in the same form.
        alpha: strength.
    """
    return contrast(logits, torch.stack([finite(each) for each in branches]).mean(dim=0), alpha)


def image_spans(context: DecodeContext) -> list[list[tuple[int, int]]]:
    """First column of each image and the one after its last, markers of begin and end included.

    Returns:
        For each prompt, copies of it counted once, its images in order.
    """
    numbers = context.image_numbers
    if numbers is not None:
        return [_spans_of(own) for own in numbers[:: context.copies].tolist()]
    spans: list[list[tuple[int, int]]] = []
    blocks, tokens = (
        each[:: context.copies].tolist() for each in (context.image_blocks, context.layout.image_tokens)
    )
    for images, block, image in zip(context.images[:: context.copies], blocks, tokens, strict=True):
        columns = [column for column, shown in enumerate(image) if shown]
        ends = [0]
        for each in images:
            ends.append(ends[-1] + each.count)
        spans.append([])
        for first, behind in pairwise(ends):
            start, stop = columns[first], columns[behind - 1] + 1
            start -= start > 0 and block[start - 1] and not image[start - 1]
            stop += stop < len(block) and block[stop] and not image[stop]
            spans[-1].append((start, stop))
    return spans


def _spans_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First column of each image and the one after its last, from the number of the image at each column."""
    images = dict.fromkeys(number for number in numbers if number >= 0)
    last = len(numbers) - 1
    return [(numbers.index(each), last - numbers[::-1].index(each) + 1) for each in images]
