"""The vision encoder of a model, by its parts, for methods that change what it makes of pictures."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from vlmfix.errors import UnsupportedError


class VisionEncoder:
    """A CLIP or SigLIP encoder whose features one projector reads.

    Args:
        model: the whole model.

    Raises:
        UnsupportedError: its encoder is another one, or the projector reads several layers of it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        core: Any = model.base_model
        tower: Any = getattr(core, "vision_tower", None)
        tower = getattr(tower, "vision_model", tower)
        projector = getattr(core, "multi_modal_projector", None)
        layers = getattr(getattr(tower, "encoder", None), "layers", None)
        known = isinstance(projector, nn.Module) and hasattr(tower, "embeddings")
        if not known or not isinstance(layers, nn.ModuleList) or not all(map(_is_plain, layers)):
            raise UnsupportedError(
                f"the vision encoder of {model.config.model_type} is not a CLIP or SigLIP encoder with a "
                "projector after it (LLaVA); use a method that acts elsewhere"
            )
        index = getattr(model.config, "vision_feature_layer", -1)
        if not isinstance(index, int):
            raise UnsupportedError(
                f"the projector of this model reads several layers of the vision encoder ({index}); use a "
                "method that acts elsewhere"
            )
        self.embeddings: nn.Module = tower.embeddings
        self.layers: nn.ModuleList = layers
        assert isinstance(projector, nn.Module)
        self.projector = projector
        self.has_class_token: bool = hasattr(tower.embeddings, "class_embedding")
        self.last_layer: int = index if index >= 0 else len(layers) + index
        """The last layer that runs for the projector; where `vision_feature_layer` counts from the front, the
        embeddings are its 0."""


def _is_plain(layer: Any) -> bool:
    parts = {name for name, _ in layer.named_children()}
    return parts == {"self_attn", "layer_norm1", "mlp", "layer_norm2"} and hasattr(layer.mlp, "activation_fn")
