"""AdaptInfer: image tokens scored by the text that matters in each layer, the rest dropped."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import (
    TokenPruning,
    as_stages,
    check_stages,
    keep_top,
    stage_layers,
)
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_flag, check_range
from vlmfix.models.profiles import Profile


@register_method("adaptinfer")
@dataclass(frozen=True, kw_only=True)
class AdaptInfer(TokenPruning):
    """Adaptive token pruning during the prefill (arXiv 2508.06084).

    At each listed layer every text token after the image (of a chat, in the last turn) gets a weight: the
    attention that it receives from and gives to the other text tokens. With these weights the text's
    attention to the image becomes one score per image token, and the best go on to the deeper layers. A
    prompt without text after its image is left as it is. A method for speed; it promises no fewer
    hallucinations.

    The released code for LLaVA numbers the positions anew after each stage (`position_scheme="renumber"`),
    that for Qwen2-VL keeps them, as here by default.

    A schedule is `prune_layers` with either `kept_tokens` or `kept_ratios`. Without one, `budget` names a
    published or calibrated schedule of the checkpoint; schedules are never scaled to another model.

    Args:
        prune_layers: layers after which tokens are dropped, 0-based.
        kept_tokens: image tokens left after each of them; a count that is not below what is there keeps all,
            where the released code drops one.
        kept_ratios: or shares of the image tokens still there, rounded down, at least one token, in [0, 1]; 1
            keeps all.
        budget: name of a schedule in the checkpoint's profile, by its mean number (or share) of image tokens
            per layer; None: the first there is, for LLaVA-1.5 "64", unless a schedule is given.
        text_prior: weigh text tokens by their role in the text; False is the ablation with equal rows.
        prior_smoothing: 1 takes the role as it is, 0 its mean over the text and all heads, in [0, 1].
    """

    prune_layers: tuple[int, ...] | None = None
    kept_tokens: tuple[int, ...] | None = None
    kept_ratios: tuple[float, ...] | None = None
    budget: str | None = None
    text_prior: bool = True
    prior_smoothing: float = 1.0

    info = MethodInfo(
        stage="pruning",
        changes="image tokens, dropped by the text's attention",
        where="prompt, after the layers of the schedule",
        forwards=1.0,
        provenance="released code",
        paper="2508.06084",
    )
    identity_parameters: ClassVar = {"kept_ratios": (1,)}
    prunes_after: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("text_prior", self.text_prior)
        check_range("prior_smoothing", self.prior_smoothing, 0, 1)
        if self.budget is not None:
            if isinstance(self.budget, bool) or not isinstance(self.budget, str | int):
                raise ValueError(f"budget is {self.budget!r}; it must be the name of a schedule, such as 33%")
            object.__setattr__(self, "budget", str(self.budget))
        if self.prune_layers is not None:
            object.__setattr__(self, "prune_layers", stage_layers(self.prune_layers))
        for name in ("kept_tokens", "kept_ratios"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_stages(value))
        for count in self.kept_tokens or ():
            if type(count) is not int or count < 0:
                raise ValueError(
                    f"kept_tokens is {self.kept_tokens}; it must hold numbers of tokens, 0 or more"
                )
        for ratio in self.kept_ratios or ():
            check_range("kept_ratios", ratio, 0, 1)
        if self.is_identity:
            return
        if self.kept_tokens is not None and self.kept_ratios is not None:
            raise ValueError("both kept_tokens and kept_ratios are given; a schedule has one of them")
        kept = self.kept_tokens if self.kept_ratios is None else self.kept_ratios
        if (self.prune_layers is None) != (kept is None):
            raise ValueError("a schedule needs prune_layers and either kept_tokens or kept_ratios")
        if kept is None:
            return
        if self.budget is not None:
            raise ValueError(f"budget is {self.budget!r}, but a schedule is given, too; give one of them")
        check_stages(self.prune_layers or (), "kept_tokens or kept_ratios", kept)

    @property
    def is_identity(self) -> bool:
        return bool(self.kept_ratios) and all(ratio == 1 for ratio in self.kept_ratios or ())

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        method = super().resolve(config, profile)
        if method.prune_layers is None:
            schedules: dict[str, dict[str, Any]] = (profile and profile.get("adaptinfer_schedules")) or {}
            budget = next(iter(schedules), None) if method.budget is None else method.budget
            schedule = schedules.get(str(budget))
            if schedule is None:
                asked = "no schedule" if budget is None else f"no schedule of budget {budget!r}"
                raise ValueError(
                    f"{asked} is known for this checkpoint (known: {', '.join(schedules) or 'none'}); pass "
                    "prune_layers and kept_tokens, or find one with 'vlmfix calibrate --model MODEL --images "
                    "DIR --method adaptinfer'"
                )
            method = dataclasses.replace(method, budget=None, **schedule)
        layers = config.get_text_config().num_hidden_layers
        assert method.prune_layers is not None
        if method.prune_layers and method.prune_layers[-1] >= layers - 1:
            raise ValueError(
                f"prune_layers has {method.prune_layers[-1]}; after a layer there must be another, so "
                f"here they go from 0 to {layers - 2}"
            )
        return method

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        if not context.is_prefill or layer not in (self.prune_layers or ()):
            return None
        if not context.layout_at(layer).has_image:
            return None
        if (self, layer) not in context.state:
            context.state[self, layer] = Rows.where(self.asking_text(context, layer))
        rows: Rows = context.state[self, layer]
        return rows

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        if not context.is_prefill:
            return
        layout = context.layout_at(layer)
        rows: Rows = context.state[self, layer].to(weights.device)
        context.state[self, "scores"] = image_scores(
            weights,
            rows.index,
            rows.mask,
            layout.image_tokens.to(weights.device),
            text_prior=self.text_prior,
            prior_smoothing=self.prior_smoothing,
        )

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer - 1 not in (self.prune_layers or ()):
            return None
        assert self.prune_layers is not None
        layout = context.layout_at(layer)
        stage = self.prune_layers.index(layer - 1)
        image_tokens = layout.image_tokens.to(hidden_states.device)
        counts: Tensor | int
        if self.kept_ratios is not None:
            present = image_tokens.sum(dim=1)
            counts = (present.double() * self.kept_ratios[stage]).long().clamp_min(1)
        else:
            assert self.kept_tokens is not None
            counts = self.kept_tokens[stage]
        scores: Tensor = context.state[self, "scores"]
        return keep_top(scores.to(hidden_states.device), image_tokens, counts)


def image_scores(
    weights: Tensor,
    text_index: Tensor,
    text_mask: Tensor,
    image_tokens: Tensor,
    *,
    text_prior: bool = True,
    prior_smoothing: float = 1.0,
) -> Tensor:
    """Scores of image tokens by the text after them (arXiv 2508.06084).

    Args:
        weights: rows of the text after the image, after the softmax, `(batch, heads, rows, keys)`.
        text_index: where these rows stand among the keys, `(rows,)`.
        text_mask: which of them are text after the image of a sample, `(batch, rows)` bool.
        image_tokens: `(batch, keys)` bool.
        text_prior: weigh text tokens by what they receive and give within the text, each head apart; False
            takes the mean over the rows, each head normalised over the image.
        prior_smoothing: 1 takes the text's attention as it is, 0 its mean over all pairs and heads.

    Returns:
        `(batch, keys)` float32; 0 outside the image.
    """
    valid = text_mask[:, None, :, None].to(weights.dtype)
    rows = weights * valid
    image = rows.masked_fill(~image_tokens[:, None, None], 0.0)
    if not text_prior:
        mean = image.sum(dim=2) / text_mask.sum(dim=1)[:, None, None].clamp_min(1)
        return (mean / mean.sum(dim=-1, keepdim=True).clamp_min(1e-12)).sum(dim=1)
    text = rows[..., text_index] * valid.transpose(-1, -2)
    both = text + text.transpose(-1, -2) - torch.diag_embed(text.diagonal(dim1=-2, dim2=-1))
    if prior_smoothing != 1:
        size = both.shape[1] * text_mask.sum(dim=1)[:, None, None, None].square().clamp_min(1)
        mean = both.sum(dim=(-3, -2, -1), keepdim=True) / size
        both = ((1 - prior_smoothing) * mean + prior_smoothing * both) * valid * valid.transpose(-1, -2)
    roles = both.sum(dim=-2)
    return torch.einsum("bhr,bhrk->bk", roles, image)
