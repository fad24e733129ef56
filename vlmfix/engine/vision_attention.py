"""What the vision encoder attends to, kept for methods that choose image tokens by it."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from vlmfix.engine.modules import device_of
from vlmfix.engine.vision_layers import LayerAttention, LayersTap, clip_keys, clip_weights
from vlmfix.errors import UnsupportedError

# Queries of a long image whose attention is held at a time.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class EncodedBlock:
    """Patches that the vision encoder reads together: an image, or a tile of it.

    Args:
        places: where the token of each patch stands among those of its image, `(patches,)` int64; -1 for
            patches that the prompt does not show.
        attention: what each patch gets from the class token, or on average from all patches where there is
            none, `(heads, patches)` float32.
        keys: key projections averaged over the heads, `(patches, head_dim)` float32.
        features: what the projector reads, `(patches, features)`; None: the tokens of the prompt themselves,
            where patches are merged before.
        class_feature: that of the class token, `(features,)`; None: there is none.
        states: where patches are merged at the end of the encoder, the mean of those of each token before
            that, `(patches, width)`; None: see `features`.
        maps: all weights, those of and to the class token first, `(heads, 1 + patches, 1 + patches)` float32;
            None: no method needs them.
        layers: attention in other layers, by number; empty: no method needs it.
    """

    places: Tensor
    attention: Tensor
    keys: Tensor
    features: Tensor | None = None
    class_feature: Tensor | None = None
    states: Tensor | None = None
    maps: Tensor | None = None
    layers: Mapping[int, LayerAttention] = field(default_factory=dict)

    def to(self, device: torch.device) -> EncodedBlock:
        """The same block on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return EncodedBlock(**moved, layers={layer: each.to(device) for layer, each in self.layers.items()})

    def at(self, patches: Tensor) -> EncodedBlock:
        """The block of some of its patches, by their numbers `(kept,)`, without `maps` and `layers`."""
        return EncodedBlock(
            self.places[patches],
            self.attention[:, patches],
            self.keys[patches],
            None if self.features is None else self.features[patches],
            self.class_feature,
            None if self.states is None else self.states[patches],
        )


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The blocks of one image or frame of a video, and its number of tokens, newline tokens included."""

    blocks: tuple[EncodedBlock, ...]
    count: int


class EncoderTap:
    """Hooks on the vision encoder that keep what the last images gave.

    Args:
        model: with a CLIP encoder and a projector, as LLaVA and LLaVA-NeXT, or with an encoder that merges
            patches at its end, as Qwen-VL.

    Raises:
        UnsupportedError: the vision encoder is another one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.core: Any = model.base_model
        self.config = model.config
        self.images: list[EncodedImage] = []
        self.videos: list[EncodedImage] = []  # one a frame, or for two that are read as one
        self.keeps_maps = False
        self._layers = LayersTap()
        self._reads_videos = False
        self._seen: dict[str, Any] = {}
        self._blocks: list[EncodedBlock] = []
        self._undo = ExitStack()
        if _is_llava_with_clip(self.core):
            self._install = self._install_clip
        elif _is_qwen(self.core):
            self._install = self._install_qwen
        else:
            raise UnsupportedError(
                f"the attention of the vision encoder of {self.config.model_type} is not read; use a model "
                "with a CLIP encoder and a projector (LLaVA), or one whose encoder merges patches (Qwen-VL)"
            )

    def check_class_token(self, name: str) -> None:
        """Refuse an encoder without a class token.

        Args:
            name: of the method that needs one.

        Raises:
            UnsupportedError: with the remedy.
        """
        if not _is_llava_with_clip(self.core):
            raise no_class_token(name, self.config)

    def install(self) -> None:
        """Hang the hooks."""
        self._install()

    def read_layers(self, wanted: Mapping[int, bool]) -> None:
        """Read these layers beside the one whose features are used, and no others; see `LayersTap.read`."""
        if _is_llava_with_clip(self.core):
            self._layers.read(self.core.vision_tower.encoder.layers, wanted)

    def remove(self) -> None:
        """Take the hooks off and forget what they saw."""
        self._undo.close()
        self._layers.close()
        self.forget()

    def forget(self) -> None:
        """Forget the last images."""
        self.images, self.videos, self._blocks, self._seen = [], [], [], {}

    def project(self, features: Tensor) -> Tensor:
        """Features `(patches, features)` as tokens of the language model, `(patches, hidden)`."""
        projector = self.core.multi_modal_projector
        tokens: Tensor = projector(features[None].to(device_of(projector, features)))[0]
        return tokens

    def _hook(self, module: nn.Module, before: Any = None, after: Any = None) -> None:
        if before is not None:
            self._undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        if after is not None:
            self._undo.callback(module.register_forward_hook(after).remove)

    # LLaVA and LLaVA-NeXT: a class token, and a projector after the encoder.

    def _install_clip(self) -> None:
        names = ("vision_feature_layer", "vision_feature_select_strategy")
        index, strategy = (getattr(self.config, name, None) for name in names)
        if not isinstance(index, int) or index >= 0 or strategy != "default":
            raise UnsupportedError(
                f"vision_feature_layer={index!r} with vision_feature_select_strategy={strategy!r} is not "
                "read; use one negative layer and 'default'"
            )
        layer = self.core.vision_tower.encoder.layers[index]
        self._hook(layer.self_attn, before=self._see_clip_attention)
        self._hook(layer, after=self._see_class_token)
        self._hook(self.core.multi_modal_projector, before=self._see_clip_features)
        if hasattr(self.core, "pack_image_features"):
            pack = self.core.pack_image_features
            attributes = vars(self.core)
            attributes["pack_image_features"] = functools.partial(self._pack, pack)
            self._undo.callback(attributes.pop, "pack_image_features")

    def _see_clip_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        key = clip_keys(module, states)
        weights = clip_weights(module, states if self.keeps_maps else states[:, :1], key)
        self._seen |= {"attention": weights[:, :, 0, 1:], "keys": key[:, 1:].mean(dim=2)}
        if self.keeps_maps:
            self._seen["maps"] = weights

    def _see_class_token(self, module: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self._seen["class"] = states[:, 0]

    def _see_clip_features(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features = args[0] if args else kwargs["image_features"]
        if "attention" not in self._seen:
            return  # a projection by `project`
        seen, self._seen = self._seen, {}
        tiles, patches = features.shape[:2]
        layers = self._layers.take(tiles)
        self._blocks = [
            EncodedBlock(
                torch.arange(patches, device=features.device),
                seen["attention"][tile],
                seen["keys"][tile],
                features[tile],
                seen["class"][tile],
                maps=seen["maps"][tile] if "maps" in seen else None,
                layers=layers[tile],
            )
            for tile in range(tiles)
        ]
        self.images = [EncodedImage((block,), patches) for block in self._blocks]

    def _pack(self, pack: Callable[..., Any], image_features: Any, *args: Any, **kwargs: Any) -> Any:
        """Lay out the tiles of an image, and the numbers of their patches in the same way."""
        packed = pack(image_features, *args, **kwargs)
        sizes = [features.shape[:2].numel() for features in image_features]
        numbers = [
            torch.arange(size, device=features.device).view(*features.shape[:2], 1).double()
            for size, features in zip(sizes, image_features, strict=True)
        ]
        newline = torch.full((1,), -1.0, device=numbers[0].device).double()
        layouts = pack(numbers, *args, **{**kwargs, "image_newline": newline})[0]
        blocks, self.images = list(self._blocks), []
        for features, layout, size in zip(image_features, layouts, sizes, strict=True):
            order = layout[:, 0].long()
            places = torch.full((size,), -1, device=order.device)
            shown = (order >= 0).nonzero().squeeze(1)
            places[order[shown]] = shown
            tiles = [blocks.pop(0) for _ in range(len(features))]
            own = [
                replace(tile, places=place)
                for place, tile in zip(places.view(len(features), -1), tiles, strict=True)
            ]
            self.images.append(EncodedImage(tuple(own), len(order)))
        return packed

    # Qwen-VL: no class token, and patches are merged at the end of the encoder.

    def _install_qwen(self) -> None:
        visual = self.core.visual
        whole = getattr(self.config.vision_config, "fullatt_block_indexes", None)
        last = len(visual.blocks) - 2
        index = last if whole is None or last in whole else max(whole)
        self._hook(visual.blocks[index].attn, before=self._see_qwen_attention)
        self._hook(visual.merger, before=self._see_qwen_states, after=self._number)
        self._hook(visual, after=self._see_qwen_tokens)
        attributes = vars(self.core)
        read = self.core.get_video_features
        if "get_video_features" in attributes:
            self._undo.callback(attributes.__setitem__, "get_video_features", read)
        else:
            self._undo.callback(attributes.pop, "get_video_features")

        @functools.wraps(read)
        def get_video_features(*args: Any, **kwargs: Any) -> Any:
            self._reads_videos = True
            try:
                return read(*args, **kwargs)
            finally:
                self._reads_videos = False

        attributes["get_video_features"] = get_video_features

    def _see_qwen_attention(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        length = states.shape[0]
        query, key, _ = module.qkv(states).reshape(length, 3, module.num_heads, -1).unbind(dim=1)
        keys = key.float().mean(dim=1)
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb_vision
        query, key = rotate(query, key, *kwargs["position_embeddings"])
        bounds = kwargs["cu_seqlens"].tolist()
        received = [
            _mean_received(query[start:end].float() * module.scaling, key[start:end].float())
            for start, end in itertools.pairwise(bounds)
        ]
        self._seen = {"attention": torch.cat(received, dim=1), "keys": keys, "bounds": bounds}

    def _see_qwen_states(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen["states"] = args[0] if args else kwargs["hidden_states"]

    def _number(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Let the tokens carry their numbers through the reordering at the end of the encoder."""
        self._seen["dtype"] = output.dtype
        numbers = torch.arange(len(output), device=output.device)[:, None]
        return torch.cat([output.float(), numbers.float()], dim=1)

    def _see_qwen_tokens(self, module: Any, args: Any, output: Any) -> Any:
        order = output.pooler_output[:, -1].long()
        output.pooler_output = output.pooler_output[:, :-1].to(self._seen["dtype"])
        unit = module.spatial_merge_size**2
        attention = self._seen["attention"].unflatten(1, (len(order), -1)).mean(dim=2)[:, order]
        keys = self._seen["keys"].unflatten(0, (len(order), -1)).mean(dim=1)[order]
        states = self._seen["states"].float().unflatten(0, (len(order), -1)).mean(dim=1)[order]
        bounds = [bound // unit for bound in self._seen["bounds"]]
        images = [
            EncodedImage(
                (
                    EncodedBlock(
                        torch.arange(end - start, device=keys.device),
                        attention[:, start:end],
                        keys[start:end],
                        states=states[start:end],
                    ),
                ),
                end - start,
            )
            for start, end in itertools.pairwise(bounds)
        ]
        if self._reads_videos:
            self.videos = images
        else:
            self.images = images
        self._seen = {}
        return output


def no_class_token(name: str, config: PreTrainedConfig) -> UnsupportedError:
    """What is said of a method that needs a class token where there is none."""
    return UnsupportedError(
        f"{name} goes by the attention of a class token, and the vision encoder of {config.model_type} has "
        "none; use a model with a CLIP encoder and a projector (LLaVA)"
    )


def _is_llava_with_clip(core: Any) -> bool:
    """Whether a model has the parts of LLaVA around a CLIP encoder."""
    layers = getattr(getattr(getattr(core, "vision_tower", None), "encoder", None), "layers", None)
    vision = getattr(core.config, "vision_config", None)
    is_clip = getattr(vision, "model_type", None) == "clip_vision_model"
    return layers is not None and is_clip and hasattr(core, "multi_modal_projector")


def _is_qwen(core: Any) -> bool:
    """Whether a model has the encoder of Qwen-VL: blocks with fused projections, and a merger at the end."""
    visual = getattr(core, "visual", None)
    attention: Any = getattr(next(iter(getattr(visual, "blocks", ())), None), "attn", None)
    if not all(hasattr(attention, name) for name in ("qkv", "num_heads", "scaling")):
        return False
    module = sys.modules[type(attention).__module__]
    return (
        attention.qkv.out_features == 3 * attention.qkv.in_features
        and not hasattr(attention, "q_norm")
        and all(hasattr(visual, name) for name in ("merger", "spatial_merge_size"))
        and hasattr(module, "apply_rotary_pos_emb_vision")
    )


def _mean_received(query: Tensor, key: Tensor) -> Tensor:
    """What each patch gets on average of all, `(heads, patches)`, from `(patches, heads, head_dim)`."""
    received = query.new_zeros(key.shape[1], key.shape[0])
    for rows in query.split(_CHUNK):
        received += torch.einsum("qhd,khd->hqk", rows, key).softmax(dim=-1).sum(dim=1)
    return received / len(key)
