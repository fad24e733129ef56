"""Pictures that are shown in the place of others, and vision encoders that take them in any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from vlmfix.errors import UnsupportedError


@dataclass(frozen=True)
class ShownPictures:
    """What a model is shown in the place of pictures.

    Args:
        images: one for each.
        tokens: image tokens that the processor must make of each.
        arguments: for the processor.
        interpolates: whether the vision encoder has to interpolate its positions to their sizes.
    """

    images: Sequence[Image.Image]
    tokens: Sequence[int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    interpolates: bool = False


@contextmanager
def interpolated_positions(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the vision encoder takes pictures of any size, its positions interpolated.

    Raises:
        UnsupportedError: it is no CLIP encoder of a model such as LLaVA.
    """
    core: Any = model.base_model
    vision = getattr(model.config, "vision_config", None)
    if getattr(vision, "model_type", None) != "clip_vision_model" or not hasattr(core, "vision_tower"):
        raise UnsupportedError(
            f"the vision encoder of {model.config.model_type} is not known to take pictures of another size; "
            "use a model with a CLIP encoder (LLaVA)"
        )

    def interpolating(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "interpolate_pos_encoding": True}

    handle = core.vision_tower.embeddings.register_forward_pre_hook(interpolating, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
