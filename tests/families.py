"""Tiny random models of every supported family, in stock classes, and prompts with images for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 120
IMAGE_TOKEN = 110
VISION_START, VISION_END, VIDEO_TOKEN = 111, 112, 113
HIDDEN, LAYERS = 32, 5
SINK_DIMENSION = 3

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_IDS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def _square(images: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(images, 3, 56, 56, generator=generator)}


def _tiles(images: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    pixels = torch.randn(images, 2, 3, 56, 56, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[50, 56]] * images)}


def _patches(images: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    grids = torch.tensor([[1, 4, 4 + 2 * (index % 2)] for index in range(images)])
    patches = int(grids.prod(dim=1).sum())
    return {
        "pixel_values": torch.randn(patches, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": grids,
    }


@dataclass(frozen=True)
class Family:
    """How to build one family: its configuration, and the image inputs of a number of images."""

    config: dict[str, Any]
    images: Callable[[int, torch.Generator], dict[str, torch.Tensor]]


FAMILIES: dict[str, Family] = {
    "llava": Family(
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_index": IMAGE_TOKEN,
        },
        _square,
    ),
    "llava_next": Family(
        {
            "text_config": {"model_type": "mistral", "sliding_window": None, **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_index": IMAGE_TOKEN,
            "image_grid_pinpoints": [[56, 56]],
        },
        _tiles,
    ),
    "llava_onevision": Family(
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
            "image_token_index": IMAGE_TOKEN,
            "video_token_index": VIDEO_TOKEN,
            "image_grid_pinpoints": [[56, 56]],
        },
        _tiles,
    ),
    "qwen2_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": HIDDEN, "mlp_ratio": 2},
            **QWEN_IDS,
        },
        _patches,
    ),
    "qwen2_5_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {
                **QWEN_VISION,
                "hidden_size": 32,
                "out_hidden_size": HIDDEN,
                "intermediate_size": 32,
                "window_size": 56,
                "fullatt_block_indexes": [1],
            },
            **QWEN_IDS,
        },
        _patches,
    ),
    "qwen3_vl": Family(
        {
            "text_config": {**TEXT, "head_dim": 8, "rope_parameters": ROPE},
            "vision_config": {
                **QWEN_VISION,
                "hidden_size": 32,
                "out_hidden_size": HIDDEN,
                "intermediate_size": 32,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            **QWEN_IDS,
        },
        _patches,
    ),
    "internvl": Family(
        {
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
            "image_token_id": IMAGE_TOKEN,
            "downsample_ratio": 0.5,
            "image_seq_length": 4,
        },
        _square,
    ),
}


class Processor:
    """What methods need of a processor to read a prompt: a word-level tokenizer, and no chat template."""

    chat_template = None
    image_token = "<image>"

    image_processor = SimpleNamespace(image_mean=[0.5, 0.4, 0.6], image_std=[0.25, 0.3, 0.2])

    def __init__(self) -> None:
        names = {IMAGE_TOKEN: "<image>", VISION_START: "<start>", VISION_END: "<end>", 0: "<pad>", 1: "<s>"}
        words = {names.get(token, f"w{token}"): token for token in range(VOCABULARY)}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="w5")),
            pad_token="<pad>",
            bos_token="<s>",
            additional_special_tokens=["<start>", "<end>"],
        )


PROCESSOR = Processor()


def build(family: str, *, seed: int = 0, **kwargs: Any) -> PreTrainedModel:
    """A random model in which the first token and some image tokens are large in `SINK_DIMENSION`."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **FAMILIES[family].config)
    model = AutoModelForImageTextToText.from_config(config, **kwargs).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)  # livelier attention than 0.02 gives
        model.get_input_embeddings().weight[1, SINK_DIMENSION] = 8.0
        _last_projection(model).weight.mul_(20.0)  # image tokens that later layers do not wash out
        _last_projection(model).weight[SINK_DIMENSION] *= 4.0
    return model


def _last_projection(model: PreTrainedModel) -> torch.nn.Linear:
    """The linear map whose outputs become image tokens."""
    projector = getattr(model.model, "multi_modal_projector", None)
    if projector is None:
        projector = model.model.visual.merger
    return [module for module in projector.modules() if isinstance(module, torch.nn.Linear)][-1]


def prompt(
    family: str, model: PreTrainedModel, images: Sequence[int] = (1,), *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Left-padded inputs of a batch.

    Args:
        images: number of images in each prompt; prompts differ in length and words.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = FAMILIES[family].images(sum(images), generator) if sum(images) else {}
    if inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    counts = _image_token_counts(model, inputs) if inputs else []
    sequences = []
    for number, count in enumerate(images):
        ids = [1, *_words(3, generator)]
        for _ in range(count):
            ids += [VISION_START, *[IMAGE_TOKEN] * counts.pop(0), VISION_END, *_words(2, generator)]
        sequences.append(ids + _words(4 + 3 * number, generator))
    length = max(map(len, sequences))
    inputs["input_ids"] = torch.tensor([[0] * (length - len(ids)) + ids for ids in sequences])
    inputs["attention_mask"] = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in sequences])
    if "image_grid_thw" in inputs or family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    return inputs


def split(
    family: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> list[dict[str, torch.Tensor]]:
    """The samples of a batch as batches of one, without padding."""
    singles = []
    image_inputs = {name: value for name, value in inputs.items() if name in _IMAGE_INPUTS}
    counts = _image_token_counts(model, image_inputs) if image_inputs else []
    first = 0
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        tokens = {
            name: inputs[name][row : row + 1, mask]
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            if name in inputs
        }
        left = int((tokens["input_ids"] == IMAGE_TOKEN).sum())
        last = first
        while left > 0:
            left -= counts[last]
            last += 1
        singles.append(tokens | _slice_images(image_inputs, first, last))
        first = last
    return singles


def continued(single: dict[str, torch.Tensor], new: Sequence[int]) -> dict[str, torch.Tensor]:
    """A batch of one with tokens behind its prompt."""
    added = torch.tensor([new], dtype=torch.long)
    ids = torch.cat([single["input_ids"], added], dim=1)
    whole = {**single, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in single:
        whole["mm_token_type_ids"] = torch.cat(
            [single["mm_token_type_ids"], torch.zeros_like(added).int()], dim=1
        )
    return whole


_IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw")


def _slice_images(inputs: dict[str, torch.Tensor], first: int, last: int) -> dict[str, torch.Tensor]:
    if first == last:
        return {}
    chosen = {name: value[first:last] for name, value in inputs.items()}
    if "image_grid_thw" in inputs:
        sizes = inputs["image_grid_thw"].prod(dim=1).tolist()
        chosen["pixel_values"] = inputs["pixel_values"][sum(sizes[:first]) : sum(sizes[:last])]
    return chosen


def _words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(5, 100, (count,), generator=generator).tolist()


def _image_token_counts(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[int]:
    with torch.no_grad():
        features = model.model.get_image_features(**inputs, return_dict=True).pooler_output
    return [len(image) for image in features]


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that a method could leave changed."""
    modules = {
        name: (sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
    kernels = {name: vars(each.config) for name, each in _submodels(model).items()}
    return {
        "modules": modules,
        "kernels": {name: dict(config) for name, config in kernels.items()},
        "weights": {
            name: (parameter.data_ptr(), parameter._version) for name, parameter in model.named_parameters()
        },
        "generation": model.generation_config.to_dict(),
    }


def _submodels(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
