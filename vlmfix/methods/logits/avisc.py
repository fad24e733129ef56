"""AvisC: away from what the image tokens with most attention alone would make the model say
(arXiv 2405.17820)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.state import Branch
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import ScaledContrast, contrast
from vlmfix.methods.logits.branch_prompts import unchanged
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range


@register_method("avisc")
@dataclass(frozen=True, kw_only=True)
class AvisC(ScaledContrast):
    """Attentional Vision Calibration (arXiv 2405.17820): away from a reading of the prompt that sees blind
    tokens alone, image tokens on which too much attention lies.

    These are found once, by the attention of the last prompt row in the layers that look most at the image.
    The embeddings of all other image tokens are 0 in that reading. The strength is that of the scripts for
    POPE; `AvisC.caption()` has that for captions.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        layer_share: the layers that look most at the image are taken until they have this share of what all
            layers give to it, in [0, 1].
        std_factor: how many standard deviations above the mean the attention to blind tokens lies, in
            [0, 10].
        beta: plausibility cut, see `LogitsMixer`.
        fused: see `Contrastive`.
    """

    layer_share: float = 0.5
    std_factor: float = 1.0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits under the image tokens with most attention alone",
        where="every step",
        forwards=2.0,
        provenance="released code",
        paper="2405.17820",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 3), "std_factor": Between(0.5, 2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("layer_share", self.layer_share, 0, 1)
        check_range("std_factor", self.std_factor, 0, 10)

    @classmethod
    def caption(cls, **parameters: Any) -> Self:
        """The strength of the scripts for captions (AMBER, LLaVA-Bench); `parameters` go before it."""
        return cls(**{"alpha": 2.5} | parameters)

    def begin(self, context: DecodeContext) -> None:
        context.check_attention(type(self).__name__, range(context.num_layers))

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> Sequence[Branch]:
        if not self._looks(context):
            return ()
        branch = unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused)
        branch.late = lambda branch: self._blind(context, branch)
        return [branch]

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout_at(layer).last_row if context.is_prefill and self._looks(context) else None

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        layout = context.layout_at(layer)
        row = weights[:, :, -1].mean(dim=1)
        row = row.masked_fill(~layout.image_tokens.to(row.device), 0.0)
        if layout.positions is not None:  # tokens that a pruning left out get nothing
            whole = row.new_zeros(context.layout.image_tokens.shape)
            row = whole.scatter(1, layout.positions.to(row.device), row)
        context.state.setdefault((self, "rows"), []).append(row)

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        context.measure(self, size=context.state[self, "share"])
        return contrast(logits, branches[0], self.alpha)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the image tokens that are blind"}

    def _looks(self, context: DecodeContext) -> bool:
        return self.contrasts and context.layout.has_image

    def _blind(self, context: DecodeContext, branch: Branch) -> None:
        """Leave a branch the blind tokens of its image alone."""
        rows = context.state.pop((self, "rows"))
        attention = torch.stack([row.to(rows[0].device) for row in rows], dim=1)
        image = context.layout.image_tokens.to(attention.device)
        blind = blind_tokens(attention, image, layer_share=self.layer_share, std_factor=self.std_factor)
        share = blind.sum(dim=1, keepdim=True) / image.sum(dim=1, keepdim=True).clamp_min(1)
        context.state[self, "share"] = share
        only(branch, blind | ~image)


def only(branch: Branch, kept: Tensor) -> None:
    """Set the embeddings of some tokens of a branch to 0, and what is added to them in its layers.

    Args:
        kept: the others, `(batch, tokens)` bool.
    """
    branch.inputs_embeds = branch.inputs_embeds * kept[..., None].to(branch.inputs_embeds.device)
    visual = branch.decoder_inputs.get("visual_pos_masks")
    if visual is None:
        return
    added = branch.decoder_inputs["deepstack_visual_embeds"]
    own = kept.to(visual.device)[visual][:, None]
    branch.decoder_inputs = {
        **branch.decoder_inputs,
        "deepstack_visual_embeds": [each * own.to(each.device) for each in added],
    }


def blind_tokens(attention: Tensor, image_tokens: Tensor, *, layer_share: float, std_factor: float) -> Tensor:
    """Image tokens on which too much attention lies (arXiv 2405.17820, released code).

    Args:
        attention: of one row in each layer, mean of the heads, `(batch, layers, tokens)`.
        image_tokens: `(batch, tokens)` bool.
        layer_share: share of all attention to the image that the layers which count have.
        std_factor: unbiased standard deviations above the mean.

    Returns:
        `(batch, tokens)` bool.
    """
    seen = attention * image_tokens[:, None]
    mass = seen.sum(dim=-1)
    shares = mass / mass.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
    ranked = shares.sort(dim=1, descending=True, stable=True)
    counted = (ranked.values.cumsum(dim=1) < layer_share).sum(dim=1, keepdim=True) + 1
    place = torch.arange(shares.shape[1], device=shares.device)[None]
    chosen = torch.zeros_like(shares).scatter(1, ranked.indices, (place < counted).to(shares))
    mean_row = (seen * chosen[..., None]).sum(dim=1) / chosen.sum(dim=1, keepdim=True)
    count = image_tokens.sum(dim=1, keepdim=True)
    mean = mean_row.sum(dim=1, keepdim=True) / count.clamp_min(1)
    squares = ((mean_row - mean).square() * image_tokens).sum(dim=1, keepdim=True)
    bound = mean + std_factor * (squares / (count - 1).clamp_min(1)).sqrt()
    return image_tokens & (mean_row >= bound)
