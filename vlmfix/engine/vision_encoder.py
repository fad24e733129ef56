"""The vision encoder of a model, by its parts, for methods that change what it makes of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from vlmfix.errors import UnsupportedError


class Removable(Protocol):
    """What hangs on a module, such as a hook."""

    def remove(self) -> None:
        """Take it off."""


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
            raise not_plain(model.config)
        index = getattr(model.config, "vision_feature_layer", -1)
        if not isinstance(index, int):
            raise UnsupportedError(
                f"the projector of this model reads several layers of the vision encoder ({index}); use a "
                "method that acts elsewhere"
            )
        self.config = model.config
        self.embeddings: nn.Module = tower.embeddings
        self.layers: nn.ModuleList = layers
        self.feed_forwards: list[nn.Module] = [layer.get_submodule("mlp") for layer in layers]
        self.down_projections: list[Any] = [layer.get_submodule("mlp.fc2") for layer in layers]
        """What reads the hidden units of the feed-forward parts, after their activation function."""
        assert isinstance(projector, nn.Module)
        self.projector = projector
        self.has_class_token: bool = hasattr(tower.embeddings, "class_embedding")
        self.last_layer: int = index - 1 if index >= 0 else len(layers) + index
        """The last layer that runs for the projector, -1 for none; where `vision_feature_layer` counts from
        the front, the embeddings are its 0."""
        self.groups: Tensor | None = None
        """Of each patch of the pictures that were encoded last, the first one of those with which a method
        merged it, `(pictures, patches)` int64; None: nothing was merged."""

    def replace_layer(self, index: int, forward: Callable[..., Tensor]) -> Removable:
        """Let a layer do something else in its place.

        Args:
            index: of the layer.
            forward: takes what the layer takes, hidden states `(pictures, tokens, width)` first, and gives
                those that leave it; their number may be another one.
        """
        return _Replaced(self.layers[index], forward)


def not_plain(config: PreTrainedConfig) -> UnsupportedError:
    """What is said of a model with another encoder."""
    return UnsupportedError(
        f"the vision encoder of {config.model_type} is not a CLIP or SigLIP encoder with a projector after "
        "it (LLaVA); use a method that acts elsewhere"
    )


class _Replaced:
    """The forward of a module, replaced."""

    def __init__(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self._attributes = vars(module)
        # Where accelerate wraps the forward, to move what it is given, it stays around.
        self._name = "_old_forward" if "_old_forward" in self._attributes else "forward"
        self._before = self._attributes.get(self._name)
        self._attributes[self._name] = forward

    def remove(self) -> None:
        """Put back what was there."""
        if self._before is None:
            del self._attributes[self._name]
        else:
            self._attributes[self._name] = self._before


def _is_plain(layer: Any) -> bool:
    parts = {name for name, _ in layer.named_children()}
    known = parts == {"self_attn", "layer_norm1", "mlp", "layer_norm2"}
    return known and all(hasattr(layer.mlp, name) for name in ("activation_fn", "fc2"))
