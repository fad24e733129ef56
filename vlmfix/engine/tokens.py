"""Special tokens of a model: placeholders and markers of images, and ends of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from vlmfix.errors import UnsupportedError

# Types whose images are placeholders alone; of other types, silence of the configuration says nothing.
_WITHOUT_MARKERS = ("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava")


def image_token(config: PreTrainedConfig) -> int:
    """Id of the placeholder that image features replace.

    Raises:
        UnsupportedError: the configuration names none, as that of a text-only model.
    """
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    raise UnsupportedError(
        f"{type(config).__name__} names no image_token_id; methods need a vision-language model that puts "
        "image features into its prompt"
    )


def video_token(config: PreTrainedConfig) -> int | None:
    """Id of the placeholder that the features of videos replace; None: videos have none of their own."""
    for name in ("video_token_id", "video_token_index"):
        token = getattr(config, name, None)
        if token is not None:
            return int(token)
    return None


def visual_tokens(config: PreTrainedConfig) -> list[int]:
    """Ids of the placeholders that features of images and videos replace.

    Raises:
        UnsupportedError: see `image_token`.
    """
    video = video_token(config)
    return [image_token(config)] + ([] if video is None else [video])


def image_markers(config: PreTrainedConfig, processor: Any = None) -> tuple[int | None, int | None]:
    """Ids of the tokens that mark where an image, or a video or frame of it, begins and where it ends; None:
    there is no such token.

    Args:
        config: of the whole model.
        processor: of the model; that of InternVL names what its configuration does not.
    """
    pairs = (
        (config, "vision_start_token_id", "vision_end_token_id"),
        (config, "image_start_token_id", "image_end_token_id"),
        (processor, "start_image_token_id", "end_image_token_id"),
    )
    for source, *names in pairs:
        begin, end = (getattr(source, name, None) for name in names)
        if begin is not None or end is not None:
            return begin, end
    return None, None


def has_no_markers(config: PreTrainedConfig) -> bool:
    """Whether images of a model are known to be placeholders alone; Pixtral breaks its rows."""
    vision = getattr(config, "vision_config", None)
    return config.model_type in _WITHOUT_MARKERS and getattr(vision, "model_type", None) != "pixtral"


def end_tokens(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Ids that end a sequence in a `generate` call with these named arguments; None: nothing does."""
    ids = generation_setting(model, kwargs, "eos_token_id")
    return None if ids is None else torch.as_tensor(ids).flatten()


def lengths(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompts of a `generate` call, and the most that may follow; 0: it does not say."""
    prompts = next(
        (kwargs[name] for name in ("input_ids", "inputs", "inputs_embeds") if kwargs.get(name) is not None),
        None,
    )
    if not isinstance(prompts, Tensor):
        return 0, 0
    length, new = prompts.shape[1], generation_setting(model, kwargs, "max_new_tokens")
    if new is None:
        longest = generation_setting(model, kwargs, "max_length")
        new = 0 if longest is None else max(0, longest - length)
    return length, int(new)


def generation_setting(model: PreTrainedModel, kwargs: Mapping[str, Any], name: str) -> Any:
    """What a `generate` call says of a setting; what it leaves open, the configurations say."""
    if name in kwargs:
        return kwargs[name]
    for source in (kwargs.get("generation_config"), model.generation_config):
        if isinstance(source, GenerationConfig) and getattr(source, name, None) is not None:
            return getattr(source, name)
    return None
