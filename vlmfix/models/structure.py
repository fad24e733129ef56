"""Parts of a model, found from the model: its text decoder, and what each layer of it keeps of a prompt."""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vlmfix.errors import UnsupportedError

StreamSite = Literal["enter", "attention", "feed_forward_input", "feed_forward", "layer"]
"""The stream that enters a layer, what attention adds to it, what the feed-forward part reads, what it adds,
and the stream that leaves the layer."""

# Norms around attention and the feed-forward part, and through which of them goes what these add.
_NORMS: dict[frozenset[str], dict[StreamSite, str]] = {
    frozenset({"input_layernorm", "post_attention_layernorm"}): {},
    frozenset({"input_layernorm"}): {},  # both parts read the same stream
    frozenset({"attention_layernorm", "feedforward_layernorm"}): {},
    frozenset({"operator_norm", "ffn_norm"}): {},
    frozenset({"post_attention_layernorm", "post_feedforward_layernorm"}): {
        "attention": "post_attention_layernorm",
        "feed_forward": "post_feedforward_layernorm",
    },
    frozenset(
        {
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        }
    ): {"attention": "post_attention_layernorm", "feed_forward": "post_feedforward_layernorm"},
    frozenset(
        {"input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"}
    ): {"attention": "post_self_attn_layernorm", "feed_forward": "post_mlp_layernorm"},
}
_MIXERS = {"self_attn", "linear_attn", "conv"}
_FEED_FORWARDS = {"mlp", "feed_forward"}

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


def stream_module(decoder: Any, layer: int, site: StreamSite) -> nn.Module:
    """The module of a layer whose output is what `site` names, or its input, for what enters the layer or the
    feed-forward part.

    Raises:
        UnsupportedError: the layer is built in a way that is not known.
    """
    found: nn.Module = decoder.layers[layer]
    if site in ("enter", "layer"):
        return found
    parts = {name: part for name, part in found.named_children() if "dropout" not in name}
    kinds = ({"self_attn"} if site == "attention" else _FEED_FORWARDS) & parts.keys()
    norms = frozenset(parts.keys() - _MIXERS - _FEED_FORWARDS)
    scales = getattr(found, "residual_multiplier", 1.0) != 1.0
    if len(kinds) != 1 or norms not in _NORMS or scales:
        raise UnsupportedError(
            f"layer {layer} is a {type(found).__name__} of {', '.join(parts)}"
            f"{', which scales what these add' if scales else ''}: what its {site.replace('_', '-')} part "
            "adds to the residual stream is not known; use a method that acts elsewhere"
        )
    return parts[_NORMS[norms].get(site, kinds.pop())]


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
