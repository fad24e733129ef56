"""A chat that goes on from its cache: the whole conversation is read anew, so that methods see all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from vlmfix.engine.caches import read_cache
from vlmfix.engine.tokens import image_token, video_token
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import new_cache, text_decoder

_REMEDY = "pass input_ids, attention_mask and the pictures of the whole conversation, or a new cache"


@contextmanager
def read_anew(model: PreTrainedModel, named: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, the filled cache of a `generate` call is empty, and the call fills it anew.

    What a method did in earlier turns, and where it dropped tokens, cannot be read off a cache; the answer is
    that to the same prompt without one. Where the block fails, the cache holds what it held before.

    Args:
        model: that generates.
        named: arguments of `generate` by name; their cache is a plain `DynamicCache`, or None.

    Raises:
        UnsupportedError: the arguments do not hold the whole conversation.
    """
    cache = read_cache(named)
    if cache is None or cache.get_seq_length() == 0:  # a static one is empty, or was refused
        yield
        return
    _check_whole(model, named, cache)
    before: list[Any] = cache.layers  # typed as their base class, without keys
    cache.layers = new_cache(text_decoder(model)).layers
    try:
        yield
    except ValueError as error:
        cache.layers = before
        if "do not match" not in str(error):
            raise
        raise UnsupportedError(
            "a cache that is filled already is read anew, and the pictures do not make as many tokens as the "
            f"prompt has placeholders ({' '.join(str(error).split())}); {_REMEDY}"
        ) from error
    except BaseException:
        cache.layers = before
        raise


def _check_whole(model: PreTrainedModel, named: Mapping[str, Any], cache: DynamicCache) -> None:
    ids, mask = named.get("input_ids", named.get("inputs")), named.get("attention_mask")
    seen = cache.get_seq_length()
    if not isinstance(ids, Tensor) or named.get("inputs_embeds") is not None:
        raise UnsupportedError(f"the cache is filled already, and there are embeddings; {_REMEDY}")
    if isinstance(mask, Tensor) and mask.shape[-1] != ids.shape[-1]:
        raise UnsupportedError(
            f"the cache holds {seen} tokens, and input_ids are the {ids.shape[-1]} new ones alone (the mask "
            f"has {mask.shape[-1]}): methods need to see all of them; {_REMEDY}"
        )
    if seen >= ids.shape[-1]:
        raise UnsupportedError(
            f"the cache holds {seen} tokens, and input_ids {ids.shape[-1]}: these are the new ones alone, or "
            f"the cache is that of another conversation; {_REMEDY}"
        )
    keys = (getattr(layer, "keys", None) for layer in cache.layers)
    sequences = next((len(own) for own in keys if own is not None), len(ids))
    if sequences % len(ids):
        raise UnsupportedError(
            f"the cache holds {sequences} sequences, and input_ids {len(ids)}, so that it is that of other "
            f"conversations; {_REMEDY}"
        )
    for kind, token in (("image", image_token(model.config)), ("video", video_token(model.config))):
        count = 0 if token is None else int((ids == token).sum())
        features = _features(model, named, kind)
        if count and features not in (None, count):
            raise UnsupportedError(
                f"the prompt has {count} placeholders of {kind}s, for which there are "
                f"{'no pixels' if features == 0 else f'{features} features'}: a cache that is filled already "
                f"is read anew, and so are the pictures; {_REMEDY}"
            )


def _features(model: PreTrainedModel, named: Mapping[str, Any], kind: str) -> int | None:
    """How many tokens the pictures or videos make; None: the model finds out."""
    if named.get("pixel_values" if kind == "image" else "pixel_values_videos") is None:
        return 0
    grids = named.get(f"{kind}_grid_thw")
    merge = getattr(getattr(model.config, "vision_config", None), "spatial_merge_size", None)
    if grids is None or merge is None:
        return None
    return int(torch.as_tensor(grids).prod(dim=-1).sum()) // int(merge) ** 2
