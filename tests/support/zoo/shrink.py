"""Default configurations made tiny: widths, depths, vocabularies and pictures, by the names of their keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig

LAYERS, TOWER_LAYERS = 5, 2
WIDTH, HEADS, HEAD = 32, 4, 8
VOCABULARY = 180
IMAGE_SIZE, PATCH = 56, 14
# Tokens of configurations count from the first marker, those that no configuration names from the free ones.
FIRST_MARKER, IMAGE_TOKEN, FIRST_FREE = 100, 110, 150
ORDINARY = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}

# First match wins; the whole key has to match. Values that are no whole numbers are left alone.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"qk_nope_head_dim", 12),
    (r"qk_head_dim", 16),
    (r".*head_dim|d_kv|resampler_dim_head", HEAD),
    (r"hidden_size_per_layer_input|d_rel|laurel_rank|loop_gate_rank|hc_lowrank", HEAD),
    (r".*lora_rank", 16),
    (r".*num_key_value_heads|linear_num_key_heads|.*kv_heads|mamba_num_heads|n_groups", 2),
    (r".*(num|attention|n)_heads|resampler_heads|num_.*attention_heads", HEADS),
    (r"(num_)?(hidden_|encoder_|decoder_|n_)?layers|depth|resampler_depth|num_global_layers", LAYERS),
    (r"index_topk", 64),
    (r".*(experts_per_tok|topk|top_k_experts|moe_k)", 2),
    (r".*num_(local_|routed_)?experts|n_routed_experts|num_local_experts|num_experts", 4),
    (r"n_group|topk_group|.*n_shared_experts|moe_num_shared_experts", 1),
    (r".*intermediate_size(_mlp)?|.*ffn_dim|mlp_dim|d_ff|.*expert_dim", 48),
    (
        r".*(hidden_size|hidden_dim|embed_dim|proj_dim|projection_dim|output_dim|input_dim|out_dim|in_dim)",
        WIDTH,
    ),
    (
        r"adapter_input_size|d_model|.*output_channels|text_hidden_size|merged_hidden_size|num_pos_feats",
        WIDTH,
    ),
    (r"vocab_size(_per_layer_input)?|unpadded_vocab_size", VOCABULARY),
    (r"image_size|img_size|resolution", IMAGE_SIZE),
    (r"patch_size", PATCH),
    (r"(max|original_max)_position_embeddings|max_source_positions", 1024),
    (r"base_channels|latent_channels", 32),
    (r"num_filters", 2),
    (r"num_res_blocks|num_lstm_layers", 1),
    (r"insert_layer_id", 0),
    (r"num_embeddings|codebook_size", 16),
    (r"query_pre_attn_scalar", HEAD),
    (r"num_query_tokens|latent_query_num|resampler_n(um)?_latents", 4),
)
_DEPTHS = re.compile(r"num_hidden_layers|depth|layers|num_layers|encoder_layers|decoder_layers|n_layers")


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, nested dictionaries merged; the value `...` drops a key."""
    result = dict(base)
    for key, value in changes.items():
        if value is ...:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def tiny(model_type: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments for the configuration of a type, everything in it tiny.

    Args:
        changes: what the rules by name get wrong, nested as the configuration is; `...` drops a key. A nested
            `model_type` that is not the default's starts from the default of that type.
    """
    changes = dict(changes or {})
    default = AutoConfig.for_model(model_type, **_other_types(changes)).to_dict()
    default.pop("model_type")
    numbers = iter(range(FIRST_MARKER, VOCABULARY))
    return merged(_shrunk(default, model_type, numbers), changes)


def _other_types(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {"model_type": value["model_type"]}
        for key, value in changes.items()
        if isinstance(value, Mapping) and "model_type" in value
    }


def _shrunk(config: Mapping[str, Any], path: str, numbers: Iterator[int]) -> dict[str, Any]:
    parts = [key for key, value in config.items() if isinstance(value, Mapping) and "model_type" in value]
    is_text = "vocab_size" in config
    layers = LAYERS if is_text else TOWER_LAYERS
    old = next((value for key, value in config.items() if _DEPTHS.fullmatch(key) and _whole(value)), 0)
    kept = _kept_layers(config, old, layers)
    result: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("transformers_version", "architectures", "dtype", "id2label", "label2id", "num_labels"):
            continue
        if key in parts:
            result[key] = _shrunk(value, key, numbers)
        elif re.fullmatch(r".*(token|start|end|newline|patch)_(id|index)", key):
            result[key] = _token(key, value, result, numbers)
        elif re.fullmatch(r".*token_ids", key) and isinstance(value, list):
            result[key] = [next(numbers) for _ in value]
        elif key == "kv_source_layers":
            result[key] = list(range(layers))
        elif key == "per_layer_config":
            result[key] = {
                f"{new:02d}": {
                    name: _exception(name, size, config | value[f"{index:02d}"])
                    for name, size in value[f"{index:02d}"].items()
                }
                for new, index in enumerate(kept)
                if f"{index:02d}" in value
            }
        elif key == "rope_parameters" and isinstance(value, Mapping):
            result[key] = _rope(value)
        elif isinstance(value, list) and len(value) == old > layers:
            result[key] = [value[index] for index in kept]
        elif re.fullmatch(r".*(layers|indexes|indices)", key) and isinstance(value, list):
            result[key] = sorted({min(index, layers - 1) for index in value if _whole(index)})
        elif key == "attention_multiplier" and value < 1:
            result[key] = HEAD**-0.5
        elif _whole(value):
            result[key] = _size(key, value, config, layers)
        else:
            result[key] = value
    return result


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Half of `HEAD` frequencies, shared between time, height and width."""
    result = {key: _rope(value) if isinstance(value, Mapping) else value for key, value in parameters.items()}
    if "mrope_section" in result:
        result["mrope_section"] = [2, 1, 1]
    return result


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(key: str, value: int, config: Mapping[str, Any], layers: int) -> int:
    found = next((size for pattern, size in _SIZES if re.fullmatch(pattern, key)), value)
    if found == LAYERS and _DEPTHS.fullmatch(key):
        return layers
    if key == "num_key_value_heads" and value == config.get("num_attention_heads"):
        return HEADS
    return found if value > 0 else value


def _exception(key: str, value: Any, config: Mapping[str, Any]) -> Any:
    """What one layer has in place of the size of the others: heads that are wider stay so."""
    if key == "head_dim":
        return 2 * HEAD
    return _size(key, value, config, LAYERS) if _whole(value) else value


def _token(key: str, value: Any, known: Mapping[str, Any], numbers: Iterator[int]) -> Any:
    """Ordinary tokens at their usual places, pictures at one, every other marker at one of its own."""
    if re.fullmatch(r"image_token_(id|index)|image_patch_id", key):
        return IMAGE_TOKEN
    if key in ORDINARY or value is None:
        return None if value is None else ORDINARY[key]
    number = next(numbers)
    return next(numbers) if number == IMAGE_TOKEN else number


def _kept_layers(config: Mapping[str, Any], old: int, layers: int) -> list[int]:
    """The first layers, the last of them replaced so that every kind of layer occurs."""
    kept = list(range(min(old, layers)))
    spare = len(kept) - 1
    for values in config.values():
        if (
            not isinstance(values, list)
            or len(values) != old
            or old <= layers
            or len({*map(str, values)}) > 4
        ):
            continue
        for index, value in enumerate(values):
            if all(values[each] != value for each in kept) and spare > 0:
                kept[spare] = index
                spare -= 1
    return sorted(kept)
