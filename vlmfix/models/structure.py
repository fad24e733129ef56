"""Parts of a model, found from the model: its text decoder, and what each layer of it keeps of a prompt."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vlmfix.errors import UnsupportedError

# The number of images of each prompt, which one of them alone does not have, and another name of the pixels.
_NOT_OF_ONE_IMAGE = ("batch_num_images", "pixel_values_images")


def text_decoder(model: PreTrainedModel) -> Any:
    """The stack of layers that reads the prompt, without the head that makes logits of it.

    Args:
        model: a whole model.

    Returns:
        A `PreTrainedModel`, typed as Any for its parts; what `get_decoder` gives where there are no layers.
    """
    found: Any = model.get_decoder()
    while not isinstance(getattr(found, "layers", None), nn.ModuleList):
        # Of Llama-4 and of BLIP-2 it is a whole language model, and OPT has its layers one further.
        inner = (getattr(found, name, None) for name in ("model", "decoder"))
        within = next(
            (each for each in inner if isinstance(each, PreTrainedModel) and each is not found), None
        )
        if within is None:
            break
        found = within
    return found


def attention_layers(decoder: Any) -> tuple[int, ...]:
    """Numbers of the layers that attend; those of a hybrid decoder that keep a state do not."""
    return tuple(
        index
        for index, layer in enumerate(decoder.layers)
        if isinstance(getattr(layer, "self_attn", None), nn.Module)
    )


def attention_of(decoder: Any, layer: int) -> nn.Module:
    """The attention of one of the layers that attend."""
    found: nn.Module = decoder.layers[layer].self_attn
    return found


def image_arguments(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the inputs of a model that its vision encoder takes: pixels, sizes, masks and grids.

    Args:
        model: a whole model; the names are those of `get_image_features` of its inner one.
    """
    encode = getattr(model.base_model, "get_image_features", None)
    if encode is None:
        return ()
    return tuple(name for name in inspect.signature(encode).parameters if name not in _NOT_OF_ONE_IMAGE)


class Memory(NamedTuple):
    """What the layers of a decoder keep of the tokens that were read.

    Args:
        window: tokens that a layer with a sliding window keeps at most, the least of all layers; None: all
            keep all tokens.
        has_state: whether some layers keep a state, from which no token can be taken back.
        own_layer: class of a layer of the cache that is of the model's own making; None: there is none.
    """

    window: int | None
    has_state: bool
    own_layer: str | None = None


def memory_of(decoder: Any) -> Memory:
    """What the layers of a decoder keep, asked of the cache that transformers makes for them.

    Raises:
        UnsupportedError: a layer keeps something else.
    """
    windows, has_state, own_layer = [], False, None
    for layer in new_cache(decoder).layers:
        kinds = type(layer).__mro__
        is_state = any(kind.__name__.startswith("LinearAttention") for kind in kinds)
        is_window = DynamicSlidingWindowLayer in kinds
        if not is_state and not is_window and type(layer) is not DynamicLayer:
            raise UnsupportedError(
                f"{type(decoder).__name__} keeps prompts in a {type(layer).__name__}, which methods do not "
                "know; use a model whose layers keep keys and values of all tokens"
            )
        has_state |= is_state
        if not type(layer).__module__.startswith("transformers.cache_utils"):
            own_layer = type(layer).__name__
        if is_window:
            windows.append(int(vars(layer)["sliding_window"]))
    return Memory(min(windows, default=None), has_state, own_layer)


def new_cache(decoder: Any) -> DynamicCache:
    """An empty cache with a place for each layer of a decoder."""
    return DynamicCache(config=decoder.config)
