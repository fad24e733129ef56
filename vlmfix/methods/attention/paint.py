"""PAINT: scores raised of patches that the vision encoder's own class token attends to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ReadsVisionAttention
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.stats import Sums
from vlmfix.engine.vision_attention import EncodedBlock, no_class_token
from vlmfix.methods.attention.base import FormulaEdit
from vlmfix.methods.attention.pai import amplify
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile

# The layer in which patches receive attention, for `spatial_fraction`.
_SPATIAL_LAYER = 0


@register_method("paint")
@dataclass(frozen=True, kw_only=True)
class PAINT(FormulaEdit, ReadsVisionAttention):
    """Paying Attention to Informed Tokens (arXiv 2501.12206).

    Of each image or tile, *summary* tokens are the outliers of what the class token of the vision encoder
    attends to in its last layer but one, *local* tokens the patches that it attends to most in the first
    layer, without these. In the last prompt row and in all new rows, their scores grow by a share of their
    own size before the softmax. It is a knife edge: on LLaVA-1.5-7B, captions are as without it up to a
    local_boost of 0.5, twice as long at 0.7 and near empty at 0.9, so look at the length of answers, too.

    Of LLaVA-NeXT, patches that the prompt shows are chosen among. The spatial stream, off by default, is a
    reconstruction: in the released code every patch receives the same, by an axis too many.

    Args:
        local_boost: share of a score's size that is added at local tokens, in [0, 100]; 0 with a
            `summary_boost` of 0 leaves the model as it is; None: from the checkpoint's profile.
        summary_boost: the same at summary tokens.
        local_fraction: patches that are local, in [0, 1], rounded down.
        spatial_fraction: patches that receive most attention from all patches in the first layer of the
            encoder and are local as well, in [0, 1], rounded down.
        outlier_iqr_factor: an outlier is above the third quartile by so many times the distance between the
            quartiles, in [0, 100].
        local_vision_layer: layer of the encoder, negative from the last.
        summary_vision_layer: layer of the encoder, negative from the last.
    """

    local_boost: float | None = None
    summary_boost: float | None = None
    local_fraction: float = 0.25
    spatial_fraction: float = 0.0
    outlier_iqr_factor: float = 1.5
    local_vision_layer: int = 0
    summary_vision_layer: int = -2

    info: ClassVar = MethodInfo(
        stage="attention",
        changes="scores of patches that the vision encoder attends to, raised by a share of their size",
        where="last prompt row and new rows; layers 2 to the last",
        forwards=1.0,
        provenance="released code",
        paper="2501.12206",
        families="with a CLIP encoder and a projector",
    )
    identity_parameters: ClassVar = {"local_boost": 0, "summary_boost": 0}
    search_space: ClassVar = {"local_boost": Between(0.1, 0.8), "summary_boost": Between(0, 0.6)}
    published_layers: ClassVar = (2, 32)
    needs_class_token: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("local_boost", "summary_boost", "outlier_iqr_factor"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, 100)
        check_range("local_fraction", self.local_fraction, 0, 1)
        check_range("spatial_fraction", self.spatial_fraction, 0, 1)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        vision: Any = getattr(config, "vision_config", None)
        if getattr(vision, "model_type", None) != "clip_vision_model":
            raise no_class_token(type(self).__name__, config)
        values: dict[str, Any] = {}
        for name in ("local_boost", "summary_boost"):
            value = getattr(self, name)
            if value is None and profile is not None:
                value = profile.get(f"paint_{name}")
            if value is None:
                raise ValueError(
                    f"no {name} is known for this checkpoint, and a little too much ruins answers; try some, "
                    f"from 0.1 on, look at the length of answers, and pass {name} (LLaVA-1.5-7B has a "
                    "local_boost of 0.7 and a summary_boost of 0.4)"
                )
            values[name] = value
        depth = vision.num_hidden_layers
        for name in ("local_vision_layer", "summary_vision_layer"):
            layer = getattr(self, name)
            if type(layer) is not int or not -depth <= layer < depth:
                raise ValueError(
                    f"{name} is {layer!r}; the layers of this vision encoder go from 0 to {depth - 1}, or "
                    f"from {-depth} to -1"
                )
            values[name] = layer % depth
        return dataclasses.replace(super().resolve(config, profile), **values)

    @property
    def encoder_layers(self) -> Mapping[int, bool]:
        spatial = {_SPATIAL_LAYER: True} if self.spatial_fraction > 0 else {}
        return {self.local_vision_layer: False, self.summary_vision_layer: False} | spatial

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        assert self.layers is not None
        if layer == self.layers[0] and context.layout.has_image:
            context.state[self] = self._boosts(context)

    def key_values(self, context: DecodeContext, layout: PromptLayout, keys: int) -> tuple[Tensor, ...]:
        boosts = layout.gather(context.state[self]) * (layout.image_tokens & self.takes(context)[:, None])
        padded = nn.functional.pad(boosts, (0, keys - layout.length))
        return padded, layout.over_keys(layout.image_tokens, keys).float()

    @property
    def formula(self) -> Callable[[Tensor, Tensor], Tensor]:
        return amplify

    def report(self, context: DecodeContext, sums: Sums) -> None:
        super().report(context, sums)
        counts = context.state.get((self, "counts"))
        if counts is not None:
            with_image = context.layout.image_tokens.any(dim=1)
            local, summary = counts[with_image].float().mean(dim=0).tolist()
            sums.details |= {"local tokens": local, "summary tokens": summary}

    def inactive_reason(self, context: DecodeContext) -> str:
        counts = context.state.get((self, "counts"))
        if counts is not None and not bool(counts.any()):
            return (
                f"no patch is local at local_fraction={self.local_fraction:g} and none an outlier at "
                f"outlier_iqr_factor={self.outlier_iqr_factor:g}; raise the first or lower the second"
            )
        return super().inactive_reason(context)

    def _boosts(self, context: DecodeContext) -> Tensor:
        """What is added to the scores of the tokens of each prompt, as a share, `(batch, prompt)` float32."""
        assert self.local_boost is not None
        assert self.summary_boost is not None
        layout = context.layout
        boosts = torch.zeros(layout.image_tokens.shape, device=layout.image_tokens.device)
        counts = boosts.new_zeros(layout.batch_size, 2, dtype=torch.int64)
        for sample in range(0, layout.batch_size, context.copies):
            columns = layout.image_tokens[sample].nonzero().squeeze(1)
            for image in context.encoded_images[sample]:
                own, columns = columns[: image.count], columns[image.count :]
                for block in image.blocks:
                    places, local, summary = self._chosen(block.to(own.device))
                    boosts[sample, own[places]] = self.local_boost * local + self.summary_boost * summary
                    counts[sample] += torch.stack([local.sum(), summary.sum()])
        first = torch.arange(layout.batch_size, device=boosts.device) // context.copies * context.copies
        context.state[self, "counts"] = counts[first]
        return boosts[first]

    def _chosen(self, block: EncodedBlock) -> tuple[Tensor, Tensor, Tensor]:
        """Where the patches of a block that the prompt shows stand among the tokens of its image, `(shown,)`
        int64, and which of them are local and which summary, bool."""
        shown = (block.places >= 0).nonzero().squeeze(1)
        local_scores, summary_scores = (
            block.layers[layer].given.sum(dim=0)[shown]
            for layer in (self.local_vision_layer, self.summary_vision_layer)
        )
        local = largest(local_scores, self.local_fraction)
        if self.spatial_fraction > 0:
            received = block.layers[_SPATIAL_LAYER].received
            assert received is not None
            local = local | largest(received[shown], self.spatial_fraction)
        summary = outliers(summary_scores, self.outlier_iqr_factor)
        return block.places[shown], local & ~summary, summary


def largest(scores: Tensor, fraction: float) -> Tensor:
    """The patches with the largest scores (arXiv 2501.12206).

    Args:
        scores: `(patches,)`.
        fraction: of all, rounded down; of equal ones the first.

    Returns:
        `(patches,)` bool.
    """
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[scores.argsort(descending=True, stable=True)[: int(fraction * len(scores))]] = True
    return mask


def outliers(scores: Tensor, factor: float) -> Tensor:
    """Scores above the third quartile by a multiple of the distance between the quartiles (arXiv 2501.12206).

    Args:
        scores: `(patches,)`; quartiles are interpolated linearly.
        factor: the multiple.

    Returns:
        `(patches,)` bool.
    """
    if not len(scores):
        return torch.zeros_like(scores, dtype=torch.bool)
    first, third = torch.quantile(scores.double(), scores.new_tensor([0.25, 0.75], dtype=torch.float64))
    mask: Tensor = scores.double() > third + factor * (third - first)
    return mask
