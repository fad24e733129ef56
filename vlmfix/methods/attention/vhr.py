"""VHR: heads whose output depends on the image, made louder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ActsInStaticSteps, AddsAuxiliaryPrompt
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import AuxiliaryPrompt
from vlmfix.engine.static_edits import Edit, StaticEdits
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.logits.branch_prompts import text_alone
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, LayersBetween
from vlmfix.methods.validation import (
    check_choice,
    check_flag,
    check_range,
    layer_indices,
)
from vlmfix.models.profiles import Profile

# Share of the layers that is reinforced where no source names them; the paper's 14 of 32.
_DEFAULT_SHARE = 0.44

# Heads a layer in the diagnostic T-VHD.
_TVHD_TOP = 8


@register_method("vhr")
@dataclass(frozen=True, kw_only=True)
class VHR(Method, AddsAuxiliaryPrompt, ActsInStaticSteps):
    """Vision-aware Head Reinforcement (arXiv 2412.13949).

    In the prefill the prompt is read a second time without its image tokens, beside the first in one pass.
    Heads whose output at the last position differs most between the two are vision-aware; the upper half of
    each reinforced layer is scaled before the output projection, in the prompt and in every step that
    follows. Each sample has its own heads, chosen layer by layer with the earlier layers reinforced already.

    The paper is silent on how the image is left out; here its tokens are removed and the text is numbered
    anew. A prompt that holds nothing but image tokens is left as it is.

    Args:
        head_scale: factor on the outputs of vision-aware heads, in [0, 10]; 1 leaves the model as it is.
        num_last_layers: reinforced layers at the end of the stack; None: from the checkpoint's profile, else
            44 % of the layers, which nobody has tested.
        extra_layers: further reinforced layers, 0-based; None: from the profile, else none.
        outlier_filter: leave out heads that differ much and are strong without the image, too.
        divergence: "euclidean" or "squared" distance; the ranking is the same, the filter is not.
        scale_positions: scale the outputs of "all" prompt positions, or of the "last" alone.
        reinforce_text_stream: scale the reading without image, too, while heads are being chosen.
    """

    head_scale: float = 2.0
    num_last_layers: int | None = None
    extra_layers: tuple[int, ...] | None = None
    outlier_filter: bool = True
    divergence: str = "euclidean"
    scale_positions: str = "all"
    reinforce_text_stream: bool = True

    info = MethodInfo(
        stage="attention",
        changes="outputs of vision-aware heads, scaled",
        where="all rows; the last 44 % of the layers (LLaVA: layer 1 and the last 14)",
        forwards=1.0,
        provenance="reconstruction",
        paper="2412.13949",
    )
    identity_parameters: ClassVar = {"head_scale": 1}
    search_space: ClassVar = {"head_scale": Between(1.1, 3), "num_last_layers": LayersBetween(1 / 16, 3 / 4)}

    def __post_init__(self) -> None:
        check_range("head_scale", self.head_scale, 0, 10)
        if self.num_last_layers is not None and (
            type(self.num_last_layers) is not int or self.num_last_layers < 0
        ):
            raise ValueError(
                f"num_last_layers is {self.num_last_layers!r}; it must be a number of layers, 0 or more"
            )
        if self.extra_layers is not None:
            object.__setattr__(self, "extra_layers", layer_indices("extra_layers", self.extra_layers))
        check_flag("outlier_filter", self.outlier_filter)
        check_choice("divergence", self.divergence, ("euclidean", "squared"))
        check_choice("scale_positions", self.scale_positions, ("all", "last"))
        check_flag("reinforce_text_stream", self.reinforce_text_stream)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        layers = config.get_text_config().num_hidden_layers
        last, extra = self.num_last_layers, self.extra_layers
        if profile is not None:
            last = profile.get("vhr_num_last_layers") if last is None else last
            extra = profile.get("vhr_extra_layers") if extra is None else extra
        last = round(_DEFAULT_SHARE * layers) if last is None else last
        extra = () if extra is None else extra
        if last > layers or any(layer >= layers for layer in extra):
            raise ValueError(
                f"num_last_layers is {last} and extra_layers is {tuple(extra)}; this model has {layers} "
                f"layers, 0 to {layers - 1}"
            )
        return dataclasses.replace(self, num_last_layers=last, extra_layers=tuple(extra))

    def auxiliary_prompt(self, context: DecodeContext, inputs_embeds: Tensor) -> AuxiliaryPrompt | None:
        if not context.layout.has_image:
            return None
        text, index = context.layout.select(text_alone(context, self, context.layout.image_tokens))
        index = index.to(inputs_embeds.device)
        embeddings = inputs_embeds.gather(1, index[..., None].expand(-1, -1, inputs_embeds.shape[-1]))
        return AuxiliaryPrompt(embeddings, text.real_tokens, text.seen)

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        if not self._acts(context, layer):
            return heads
        if self in context.auxiliary_prompts:
            context.state[self, layer] = self._choose(context, layer, heads)
        factors, count = context.state[self, layer]
        context.count(self, layer, count, heads.shape[2])
        if context.reads_on(heads.shape[1]):
            scaled: Tensor = heads * factors
            return scaled
        length = context.layout_at(layer).length
        rows = torch.zeros(heads.shape[1], dtype=torch.bool, device=heads.device)
        rows[self._scaled(0, length)] = True
        if not context.is_prefill:  # without a cache, generated rows stand after the prompt
            rows[length:] = True
        elif self.reinforce_text_stream:
            text = context.auxiliary_tokens(self, heads.shape[1])
            rows[self._scaled(text.start, text.stop)] = True
        # One product and no copy, as there are many rows; times 1 the others are what they were to the bit.
        return heads * torch.where(rows[:, None, None], factors, 1.0)

    def static_edits(self, context: DecodeContext, layer: int, keys: int) -> StaticEdits | None:
        if not self._acts(context, layer):
            return None
        factors, count = context.state[self, layer]
        return StaticEdits(heads=Edit(torch.mul, (factors,)), edited=count)

    def _scaled(self, start: int, stop: int) -> slice:
        """Which rows of one reading of the prompt are scaled."""
        return slice(start if self.scale_positions == "all" else stop - 1, stop)

    def _choose(self, context: DecodeContext, layer: int, heads: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of each sample's heads, `(batch, 1, heads, 1)`, and how many are scaled, `(batch,)`."""
        without_image = heads[:, context.auxiliary_tokens(self, heads.shape[1])][:, -1].float()
        with_image = heads[:, context.layout_at(layer).length - 1].float()
        divergence = head_divergence(with_image, without_image)
        if self.divergence == "squared":
            divergence = divergence.square()
        device = context.layout.image_tokens.device
        divergence = divergence * self.takes(context).to(heads.device)[:, None]
        top = divergence.topk(min(_TVHD_TOP, divergence.shape[1]), dim=1).values.sum(dim=1)
        context.state[self, "divergence"] = context.state.get((self, "divergence"), 0) + top.to(device)
        energy = without_image.square().sum(dim=-1)
        selected = select_heads(divergence, energy, outlier_filter=self.outlier_filter)
        factors = torch.where(selected, self.head_scale, 1.0).to(heads.dtype)
        return factors[:, None, :, None], (factors != 1).sum(dim=1)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        divergence = context.state.get((self, "divergence"))
        if divergence is not None:
            taken = self.takes(context)
            sums.size, sums.size_count = float(divergence[taken].sum()), int(taken.sum())
            sums.details = {
                "size": f"T-VHD: divergence of the {_TVHD_TOP} most vision-aware heads, over layers"
            }

    def inactive_reason(self, context: DecodeContext) -> str:
        if not any(self._acts(context, layer) for layer in range(context.num_layers)):
            return "no layer is reinforced; raise num_last_layers or name extra_layers"
        return (
            "no head differs more than the others between the prompt with and without its image, or "
            f"head_scale={self.head_scale:g} is 1 in the precision of the model"
        )

    def _acts(self, context: DecodeContext, layer: int) -> bool:
        assert self.num_last_layers is not None
        assert self.extra_layers is not None
        reinforced = layer >= context.num_layers - self.num_last_layers or layer in self.extra_layers
        return reinforced and context.layout.has_image


def head_divergence(with_image: Tensor, without_image: Tensor) -> Tensor:
    """Vision-aware Head Divergence (arXiv 2412.13949, VHD): how far the image moves the output of each head.

    Args:
        with_image: head outputs at the last prompt position, before the output projection, `(..., heads,
            head_dim)`.
        without_image: the same of the prompt without its image tokens.

    Returns:
        Euclidean distances, `(..., heads)`.
    """
    distances: Tensor = torch.linalg.vector_norm(with_image - without_image, dim=-1)
    return distances


def select_heads(divergence: Tensor, without_image_energy: Tensor, *, outlier_filter: bool = True) -> Tensor:
    """Vision-aware heads of one layer: those that diverge more than the median (arXiv 2412.13949).

    A head that is an outlier in both divergence and energy without the image (more than one unbiased standard
    deviation above the mean over the heads) counts as not diverging.

    Args:
        divergence: `(..., heads)`.
        without_image_energy: squared norms of the head outputs without the image, `(..., heads)`.
        outlier_filter: whether outliers are left out.

    Returns:
        `(..., heads)` bool; heads that tie with the (lower) median are not selected.
    """
    if outlier_filter:
        outliers = _is_outlier(divergence) & _is_outlier(without_image_energy)
        divergence = divergence.masked_fill(outliers, 0.0)
    return divergence > divergence.median(dim=-1, keepdim=True).values


def _is_outlier(values: Tensor) -> Tensor:
    return values > values.mean(dim=-1, keepdim=True) + values.std(dim=-1, keepdim=True)
