"""PyramidDrop: at a few depths, the image tokens that the next layer would hardly look at leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import (
    TokenPruning,
    as_stages,
    check_stages,
    keep_top,
    stage_layers,
)
from vlmfix.methods.pruning.fastv import last_row_scores
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range
from vlmfix.models.profiles import Profile

PUBLISHED_LAYERS = (8, 16, 24)
_PUBLISHED_DEPTHS = (32, 40)


@register_method("pyramid_drop")
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(TokenPruning):
    """PyramidDrop (arXiv 2410.17247): fewer image tokens in every next quarter of the layers.

    Before each stage, the layer to come is asked where the last prompt token would look; the image tokens
    with most of its attention go on. The released code numbers the positions anew; the default keeps them.

    Args:
        prune_layers: layers that see fewer tokens than the one before, ascending, 0-based; None: the
            published 8, 16 and 24, for models of 32 or 40 layers only.
        keep_ratios: shares of the original image tokens that enter these layers, in [0, 1]; 1 in all of them
            leaves the model as it is.
    """

    prune_layers: tuple[int, ...] | None = None
    keep_ratios: tuple[float, ...] = (0.5, 0.25, 0.125)

    info = MethodInfo(
        stage="pruning",
        changes="image tokens with little attention from the last one leave in stages",
        where="prefill, before layers 8, 16, 24",
        forwards=1.0,
        provenance="released code",
        paper="2410.17247",
    )
    identity_parameters: ClassVar = {"keep_ratios": (1, 1, 1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune_layers is not None:
            object.__setattr__(self, "prune_layers", stage_layers(self.prune_layers))
        object.__setattr__(self, "keep_ratios", as_stages(self.keep_ratios))
        for ratio in self.keep_ratios:
            check_range("keep_ratios", ratio, 0, 1)
        check_stages(self.layers, "keep_ratios", self.keep_ratios)

    @property
    def is_identity(self) -> bool:
        return all(ratio == 1 for ratio in self.keep_ratios)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        if self.prune_layers is None and depth not in _PUBLISHED_DEPTHS:
            raise ValueError(
                f"no schedule of PyramidDrop is published for {depth} layers, only for 32 and 40; pass "
                "prune_layers and keep_ratios"
            )
        if self.layers and self.layers[-1] >= depth:
            raise ValueError(
                f"prune_layers has {self.layers[-1]}; the layers of this model go from 0 to {depth - 1}"
            )
        return super().resolve(config, profile)

    @property
    def layers(self) -> tuple[int, ...]:
        """`prune_layers`, or the published ones."""
        return PUBLISHED_LAYERS if self.prune_layers is None else self.prune_layers

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer not in self.layers:
            return None
        assert context.peek is not None
        layout = context.layout_at(layer)
        scores = last_row_scores(context.peek(layout.last_row))
        counts = pyramid_counts(context.layout.image_tokens, self.keep_ratios[self.layers.index(layer)])
        return keep_top(scores, layout.image_tokens.to(scores.device), counts.to(scores.device))


def pyramid_counts(image_tokens: Tensor, keep_ratio: float) -> Tensor:
    """Image tokens of each sample that stay: a share of what the prompt came with, rounded down.

    Args:
        image_tokens: of the whole prompt, `(batch, tokens)` bool.
        keep_ratio: in [0, 1].

    Returns:
        `(batch,)` int64.
    """
    return (image_tokens.sum(dim=1).double() * keep_ratio).long()
