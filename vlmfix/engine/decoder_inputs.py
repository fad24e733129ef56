"""What a text decoder is given: embeddings, positions and masks, and what some models add to these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlmfix.engine.caches import without_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.errors import UnsupportedError

# Visual features that Qwen3-VL adds after its first layers, and where.
_PLACES, _FEATURES = "visual_pos_masks", "deepstack_visual_embeds"
_PLAIN = {"inputs_embeds", "attention_mask", "position_ids"}


def extras(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a decoder is given beside embeddings, positions, masks and cache: tensors, or lists or mappings of
    some."""
    return {
        name: value
        for name, value in without_cache(kwargs).items()
        if name not in _PLAIN and isinstance(value, Tensor | list | tuple | Mapping) and len(value) > 0
    }


def of_tokens(kwargs: Mapping[str, Any], embeddings: Tensor) -> dict[str, Tensor]:
    """The extras that have a value for each token, `(batch, tokens, ...)`: kinds of tokens, places of
    features."""
    return {
        name: value
        for name, value in extras(kwargs).items()
        if isinstance(value, Tensor) and value.shape[:2] == embeddings.shape[:2]
    }


def embedded_tokens(kwargs: Mapping[str, Any], embeddings: Tensor) -> dict[str, Tensor]:
    """Those of `of_tokens` that are further embeddings of the tokens, as Gemma 4 has one for each layer."""
    tokens = of_tokens(kwargs, embeddings)
    return {name: value for name, value in tokens.items() if value.is_floating_point()}


def padded(kwargs: Mapping[str, Any], embeddings: Tensor, count: int) -> dict[str, Any]:
    """Extras for `count` text tokens more, after those of `embeddings`."""
    more = {
        name: torch.cat([value, value.new_zeros(len(value), count, *value.shape[2:])], dim=1)
        for name, value in of_tokens(kwargs, embeddings).items()
    }
    return extras(kwargs) | more


def check_features(kwargs: Mapping[str, Any], embeddings: Tensor, why: str) -> None:
    """Refuse features that a model injects in a way not known here.

    Args:
        why: what would have to be done with them.

    Raises:
        UnsupportedError: with their names.
    """
    tokens = of_tokens(kwargs, embeddings)
    unknown = [name for name in extras(kwargs) if name not in tokens and name != _FEATURES]
    if unknown:
        raise UnsupportedError(
            f"this model gives its text decoder {', '.join(unknown)}, which would have to be {why} in a way "
            "not known here; use a method of another kind"
        )


def copied(kwargs: dict[str, Any], copies: int) -> dict[str, Any]:
    """What the decoder is given, for so many sequences of each prompt."""
    kwargs, embeddings = dict(kwargs), kwargs["inputs_embeds"]
    check_features(kwargs, embeddings, "repeated for every sequence of a prompt")
    places = kwargs.get(_PLACES)
    if places is not None:
        counts = places.sum(dim=1).tolist()
        kwargs[_FEATURES] = [
            torch.cat([own for own in features.split(counts) for _ in range(copies)])
            for features in kwargs[_FEATURES]
        ]

    def repeated(value: Tensor) -> Tensor:
        return value.repeat_interleave(copies, dim=0)

    for name, value in of_tokens(kwargs, embeddings).items():
        kwargs[name] = repeated(value)
    positions = kwargs.get("position_ids")
    if positions is not None and positions.shape[-2] == len(embeddings):
        kwargs["position_ids"] = positions.repeat_interleave(copies, dim=-2)
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        kwargs["attention_mask"] = repeated(mask)
    else:
        kwargs["attention_mask"] = of_masks(mask, repeated)
    kwargs["inputs_embeds"] = repeated(embeddings)
    return kwargs


def one_of_each(kwargs: Mapping[str, Any], embeddings: Tensor, copies: int) -> dict[str, Any]:
    """Extras for one of so many equal sequences of each prompt."""
    kwargs, tokens = extras(kwargs), of_tokens(kwargs, embeddings)
    places = kwargs.get(_PLACES)
    if places is not None and kwargs.get(_FEATURES):
        counts = places.sum(dim=1).tolist()
        kwargs[_FEATURES] = [torch.cat(each.split(counts)[::copies]) for each in kwargs[_FEATURES]]
    return kwargs | {name: value[::copies] for name, value in tokens.items()}


def last_alone(kwargs: dict[str, Any], positions: Tensor) -> dict[str, Any]:
    """What the decoder is given, for the last token alone, on a cache of those before it."""
    embeddings, places, features = kwargs["inputs_embeds"], kwargs.get(_PLACES), kwargs.get(_FEATURES)
    tokens = of_tokens(kwargs, embeddings)
    kwargs = {name: value for name, value in kwargs.items() if name not in extras(kwargs)}
    kwargs |= {name: value[:, -1:] for name, value in tokens.items() if name != _PLACES}
    if places is not None and features is not None and bool(places[:, -1].any()):
        is_last = places.nonzero()[:, 1] == places.shape[1] - 1
        kwargs[_PLACES] = places[:, -1:]
        kwargs[_FEATURES] = [each[is_last.to(each.device)] for each in features]
    mask = of_masks(kwargs.get("attention_mask"), lambda each: each[..., -1:, :])
    return kwargs | {
        "inputs_embeds": embeddings[:, -1:],
        "position_ids": positions[..., -1:],
        "attention_mask": mask,
    }


def positions_of(kwargs: Mapping[str, Any], layout: PromptLayout) -> Tensor:
    """The positions given to the decoder, or those that it would count itself, `(batch or 1, tokens)` or
    `(axes, batch, tokens)`."""
    given: Tensor | None = kwargs.get("position_ids")
    if given is not None:
        return given
    embeddings = kwargs["inputs_embeds"]
    return torch.arange(embeddings.shape[1], device=embeddings.device)[None]


def with_auxiliary_prompts(context: DecodeContext, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the decoder is given, with the auxiliary prompts after the prompt, at positions of their own."""
    embeddings, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    positions = positions_of(kwargs, context.layout)
    batch, whole = len(embeddings), embeddings
    if embedded_tokens(kwargs, embeddings):
        raise UnsupportedError(
            "the text decoder of this model reads more of each token than its embedding, which a second "
            "prompt lacks; use a method of another kind"
        )
    for auxiliary_prompt in context.auxiliary_prompts.values():
        whole = torch.cat([whole, auxiliary_prompt.inputs_embeds], dim=1)
        own = auxiliary_prompt.layout.counted_positions.to(positions.device) + context.first_position
        head = positions.expand(*positions.shape[:-2], batch, -1)
        positions = torch.cat([head, own.expand(*head.shape[:-1], -1)], dim=-1)
        if isinstance(mask, Tensor) and mask.ndim == 2:  # masks prepared ahead are the layout's now
            mask = torch.cat([mask, auxiliary_prompt.real_tokens.to(mask)], dim=1)
    more = padded(kwargs, embeddings, context.auxiliary_length)
    return kwargs | more | {"inputs_embeds": whole, "position_ids": positions, "attention_mask": mask}


def of_masks(mask: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Masks that a model prepared ahead, one for each type of layer or for all; others stay as they are."""
    if isinstance(mask, Mapping):
        return {kind: of_masks(each, change) for kind, each in mask.items()}
    return change(mask) if isinstance(mask, Tensor) and mask.ndim == 4 else mask


def selected(values: Mapping[str, Tensor], index: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Values of tokens, `(batch, tokens, ...)` each, at other places; 0 where a token is new.

    Args:
        index: where each token stood, `(batch, new tokens)`.
        kept: which are not new, likewise bool.
    """
    found = {}
    for name, value in values.items():
        rows = torch.arange(len(value), device=value.device)[:, None]
        moved = value[rows, index.to(value.device)]
        mask = kept.to(value.device).view(*kept.shape, *[1] * (value.ndim - 2))
        found[name] = torch.where(mask, moved, torch.zeros_like(moved))
    return found
