"""FarSight: attention that early tokens would waste goes to registers in the place of the tokens to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmfix.engine.capabilities import ActsInStaticSteps
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_choice, check_range


@register_method("farsight")
@dataclass(frozen=True, kw_only=True)
class FarSight(Method, ActsInStaticSteps):
    """FarSight (arXiv 2505.16652): in the rows of the prompt, registers stand for the tokens to come, with
    scores that fall with their distance. They take part in the softmax, and what they get is dropped: a row
    whose own scores are low says less.

    This is a factor on the output of each row and head, and is computed as one: there are no registers. The
    last row of the prompt and new rows have no tokens to come. The released code reads everything again in
    every step, without a cache, under registers for new tokens, too; here rows of the prompt are read once,
    and keep theirs. Registers stand after the last token that a row sees, which matters where image tokens
    see later ones. With masks that are added to all scores, the release hides the registers again, and gives
    the output of the model; this method does not.

    Args:
        sigma: how fast the scores of registers fall, in [0.01, 1000]; at 1000 they weigh nothing, which
            leaves the model as it is.
        form: "released": the fall slows down towards the end of the prompt, to three quarters, and each head
            adds a slope of its own, as in the code; "paper": it is `sigma` everywhere.
    """

    sigma: float = 0.8
    form: str = "released"

    info: ClassVar = MethodInfo(
        stage="attention",
        changes="outputs of heads, less the more registers would take",
        where="rows of the prompt but the last; all layers",
        forwards=1.0,
        provenance="released code",
        paper="2505.16652",
    )
    identity_parameters: ClassVar = {"sigma": 1000}
    search_space: ClassVar = {"sigma": Between(0.1, 4, log=True)}

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 0.01, 1000)
        check_choice("form", self.form, ("released", "paper"))

    @classmethod
    def takes_gate(cls) -> bool:
        return False  # of the newest row nothing is edited

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        acts = context.layout.has_image and context.reads_prompt
        return context.layout_at(layer).all_rows if acts else None

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        assert context.log_sum_exp is not None
        if context.row_positions is None:  # the last row of the prompt is read again
            return weights
        layout = context.layout_at(layer)
        place, gap, future, real = _of_rows(layout, context.row_positions)
        decay = decays(
            place, real, weights.shape[1], sigma=self.sigma, is_released=self.form == "released"
        ).to(weights.device)
        kept = gates(context.log_sum_exp(), decay, gap.to(weights.device), future.to(weights.device))
        kept = torch.where(self.takes(context).to(weights.device)[:, None, None, None], kept, 1.0)
        self._measure(context, layer, layout, 1 - kept[..., 0])
        return weights * kept

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> None:
        return None  # new rows have no registers

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of its attention that a row of the prompt loses in a head"}

    def inactive_reason(self, context: DecodeContext) -> str:
        if context.layout.sees_ahead:
            return (
                "all tokens of a prompt see each other in this model, so that none is to come; leave it out"
            )
        return f"registers weigh too little to tell at sigma={self.sigma:g}; lower sigma"

    def _measure(self, context: DecodeContext, layer: int, layout: PromptLayout, lost: Tensor) -> None:
        """Note the mean over the rows of the prompt, which come in blocks, `(batch, heads, rows)` each."""
        assert context.row_positions is not None
        positions = context.row_positions.clamp_max(layout.length - 1)
        is_prompt = layout.real_tokens.to(lost.device)[:, positions] & (context.row_positions < layout.length)
        key = (self, layer, "lost")
        total = context.state.pop(key, 0) + torch.where(is_prompt[:, None], lost, 0.0).sum(dim=-1)
        if context.has_newest_row:
            context.measure(self, size=total / layout.real_tokens.sum(dim=1, keepdim=True).to(lost.device))
        else:
            context.state[key] = total


def _of_rows(layout: PromptLayout, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where rows stand among the real tokens, how far the last token is that they see, and how many come
    after it, `(batch, rows)` each; and how many real tokens there are, `(batch, 1)`.

    Args:
        positions: of the rows among the tokens of the layer, new ones after the prompt, `(rows,)`.
    """
    real = layout.real_tokens.to(positions.device).sum(dim=1, keepdim=True)
    place = positions - (layout.length - real)
    gap = torch.zeros_like(place)
    if layout.seen is not None:
        inside = positions.clamp_max(layout.length - 1)
        seen = layout.seen.to(positions.device)[:, inside]
        last = layout.length - 1 - seen.flip(-1).int().argmax(dim=-1)
        gap = (last - positions).clamp_min(0) * (positions < layout.length)
    return place, gap, (real - 1 - place - gap).clamp_min(0), real


def decays(place: Tensor, tokens: Tensor, heads: int, *, sigma: float, is_released: bool) -> Tensor:
    """By how much the score of a register falls with each token of distance (arXiv 2505.16652).

    Args:
        place: of the rows among the tokens of the prompt, `(batch, rows)`.
        tokens: of the prompt, `(batch, 1)`.
        heads: number of heads.
        sigma: see `FarSight`.
        is_released: whether in the form of the released code.

    Returns:
        `(batch, heads, rows, 1)` float32.
    """
    if not is_released:
        return place.new_full((len(place), heads, place.shape[1], 1), sigma, dtype=torch.float32)
    slope = torch.exp2(-8 * torch.arange(1, heads + 1, device=place.device) / heads)
    slower = sigma * (1 - place / (4 * (tokens - 1).clamp_min(1)))
    return (slower[:, None] + slope[:, None])[..., None]


def gates(log_sum_exp: Tensor, decay: Tensor, gap: Tensor, future: Tensor) -> Tensor:
    """What rows keep of their attention beside registers (arXiv 2505.16652, in closed form).

    Args:
        log_sum_exp: of their scores, `(batch, heads, rows, 1)`.
        decay: see `decays`.
        gap: tokens between a row and its first register, `(batch, rows)`.
        future: number of registers, `(batch, rows)`.

    Returns:
        In (0, 1], `(batch, heads, rows, 1)`; 1 without a register.
    """
    gap, future = gap[:, None, :, None], future[:, None, :, None]
    registers = -decay * (gap + 1) + torch.log(-torch.expm1(-decay * future))
    return torch.sigmoid(log_sum_exp - registers + torch.log(-torch.expm1(-decay)))
