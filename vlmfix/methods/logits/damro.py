"""DAMRO: away from what the patches that the vision encoder attends to most alone would make the model say
(arXiv 2410.04514)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlmfix.engine.capabilities import ReadsVisionAttention
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Branch
from vlmfix.engine.stats import Sums
from vlmfix.engine.vision_attention import EncodedBlock
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast, contrast
from vlmfix.methods.logits.composed_prompts import Token, composed
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, OneOf
from vlmfix.methods.validation import check_whole


@register_method("damro")
@dataclass(frozen=True, kw_only=True)
class DAMRO(ScaledContrast, ReadsVisionAttention):
    """DAMRO (arXiv 2410.04514): away from a prompt whose image is nothing but the outlier patches, those to
    which the class token of the vision encoder attends most, which carry no detail.

    They are found once, in the layer whose features the model uses, by scores of one head over the full
    width, and stand in descending order in the place of their image. Of an image in tiles, each tile has its
    own; the released code knows whole images alone. The settings are those for LLaVA-1.5; the paper has top_k
    4 and alpha 0.5 (POPE) or 1.5 (CHAIR) for InstructBLIP. The released code passes over all logits
    processors of the user, which act here.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        top_k: outlier patches of an image or tile, 1 or more.
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    alpha: float = 2.0
    top_k: int = 10

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits under the patches that the class token attends to most",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2410.04514",
        families="with a CLIP encoder and a projector",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 4), "top_k": OneOf((3, 10, 30))}
    needs_class_token: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("top_k", self.top_k, 1)

    @property
    def reads_encoder(self) -> bool:
        return self.contrasts

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self.contrasts or not context.layout.has_image:
            return ()
        prompts = self._prompts(context)
        image = context.layout.image_tokens
        rows = image[:: context.copies].tolist()
        kept = [sum(row[token.column] for token in own) for own, row in zip(prompts, rows, strict=True)]
        shares = image.new_tensor(kept, dtype=torch.float32).repeat_interleave(context.copies)
        context.state[self] = shares[:, None] / image.sum(dim=1, keepdim=True).clamp_min(1)
        return [composed(context, inputs_embeds, decoder_inputs, prompts, fused=self.fused)]

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        context.measure(self, size=context.state[self])
        return contrast(logits, branches[0], self.alpha)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the image tokens that are outliers"}

    def _prompts(self, context: DecodeContext) -> list[list[Token]]:
        """The prompts with the outliers of each image in its place, copies of them counted once."""
        layout = context.layout
        rows = [each[:: context.copies].tolist() for each in (layout.real_tokens, layout.image_tokens)]
        prompts = []
        for real, image, encoded in zip(*rows, context.encoded_images[:: context.copies], strict=True):
            columns = [column for column, shown in enumerate(image) if shown]
            instead: dict[int, list[int]] = {}
            for each in encoded:
                own, columns = columns[: each.count], columns[each.count :]
                places = [place for block in each.blocks for place in outliers(block, self.top_k).tolist()]
                instead[own[0]] = [own[place] for place in places]
            tokens = []
            for column, is_real in enumerate(real):
                if is_real and not image[column]:
                    tokens.append(Token(column))
                tokens += map(Token, instead.get(column, ()))
            prompts.append(tokens)
        return prompts


def outliers(block: EncodedBlock, count: int) -> Tensor:
    """Where the patches with the largest full-width scores stand among the tokens of their image.

    Returns:
        `(count,)` int64 at most, in descending order of score; of equal ones the first comes first.
    """
    shown = (block.places >= 0).nonzero().squeeze(1)
    order = full_width_scores(block.attention[:, shown]).argsort(descending=True, stable=True)
    return block.places[shown][order[:count]]


def full_width_scores(attention: Tensor) -> Tensor:
    """Scores of patches under one head over the full width, up to a factor and a constant (arXiv 2410.04514).

    The logarithm of a weight is a score of its head up to a constant, and those of all heads, summed, are the
    product of query and key over the full width.

    Args:
        attention: of the class token to patches, `(heads, patches)`.

    Returns:
        `(patches,)`, in the order of the weights of that one head.
    """
    scores: Tensor = attention.clamp_min(torch.finfo(attention.dtype).tiny).log().sum(dim=0)
    return scores
