"""SIRA: away from what the model would say if its deeper half did not see the image (arXiv 2605.14621)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from transformers import PreTrainedConfig

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import Selection
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.sid import AgainstSelection, check_layer, least_attended_image
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, LayersBetween
from vlmfix.models.profiles import Profile


@register_method("sira")
@dataclass(frozen=True, kw_only=True)
class SIRA(AgainstSelection):
    """Contrast with a reading that loses the image in its deeper layers ("Do We Really Need External Tools to
    Mitigate Hallucinations?", arXiv 2605.14621): SID that keeps no image token, and from the middle on.

    The first layers of both readings see everything, so that text tokens carry a first impression of the
    image in both; the contrast is what looking at it again in deeper layers adds. There is no public code:
    this is reconstructed from a reading note of the paper, with its settings; it has no plausibility cut, and
    the layers before `layer` are taken to be the shared ones. The paper computes these once; here they run
    for both readings, with the same result.

    Args:
        alpha: strength, in [0, 100]; 0 leaves only the cut.
        layer: the first layer that does not see the image, 0-based, 1 or more; None: half the depth, as
            published for 32 and 28 layers.
        beta: plausibility cut, see `LogitsMixer`; none in the paper.
        fused: see `Contrastive`.
    """

    layer: int | None = None
    beta: float = 0.0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="away from the logits of a reading whose deeper half does not see the image",
        where="every step",
        forwards=2.0,
        provenance="reconstruction",
        paper="2605.14621",
    )
    search_space: ClassVar = {"alpha": Between(0.2, 2), "layer": LayersBetween(1 / 4, 3 / 4)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and (type(self.layer) is not int or self.layer < 1):
            raise ValueError(
                f"layer is {self.layer!r}; it must be a layer index, 1 or more, or None for half the depth"
            )

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        layer = self.layer
        if layer is None:
            layer = max(1, config.get_text_config().num_hidden_layers // 2)
        check_layer(layer, config)
        return dataclasses.replace(self, layer=layer)

    def selection(self, context: DecodeContext) -> Selection:
        assert self.layer is not None
        return least_attended_image(context, self.layer, 0)
