"""Tiny random models of every supported family, in stock classes, and prompts with images for them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from vlmfix.engine.vision_cache import encode_images, is_video, split_images

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


def _video_patches(videos: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    grids = torch.tensor([[2 + index % 2, 4, 4] for index in range(videos)])
    patches = int(grids.prod(dim=1).sum())
    return {
        "pixel_values_videos": torch.randn(patches, 3 * 2 * 14 * 14, generator=generator),
        "video_grid_thw": grids,
    }


def _timed_patches(videos: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    # Far apart, so that the time of the last frame is larger than any position of the text after it.
    return {**_video_patches(videos, generator), "second_per_grid_ts": torch.tensor([9] * videos)}


def _frames(videos: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values_videos": torch.randn(videos, 3, 3, 56, 56, generator=generator)}


@dataclass(frozen=True)
class Family:
    """How to build one family: its configuration, and the inputs of a number of images, and of videos."""

    config: dict[str, Any]
    images: Callable[[int, torch.Generator], dict[str, torch.Tensor]]
    videos: Callable[[int, torch.Generator], dict[str, torch.Tensor]] | None = None


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
        _frames,
    ),
    "qwen2_vl": Family(
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": HIDDEN, "mlp_ratio": 2},
            **QWEN_IDS,
        },
        _patches,
        _video_patches,
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
        _timed_patches,
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
        _video_patches,
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
    start_image_token_id, end_image_token_id = VISION_START, VISION_END

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
    family: str,
    model: PreTrainedModel,
    images: Sequence[int] = (1,),
    *,
    videos: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Left-padded inputs of a batch.

    Args:
        images: number of images in each prompt; prompts differ in length and words.
        videos: number of videos in each, before its images; none if empty.
    """
    generator = torch.Generator().manual_seed(seed)
    videos = videos or [0] * len(images)
    inputs = FAMILIES[family].images(sum(images), generator) if sum(images) else {}
    of_videos = FAMILIES[family].videos
    if sum(videos):
        assert of_videos is not None
        inputs |= of_videos(sum(videos), generator)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    image_counts, video_counts = token_counts(model, inputs)
    sequences = []
    for number, (image_count, video_count) in enumerate(zip(images, videos, strict=True)):
        ids = [1, *_words(3, generator)]
        for _ in range(video_count):
            # Qwen3-VL reads frame by frame, with the time before each.
            frames = int(inputs["video_grid_thw"][-len(video_counts), 0]) if family == "qwen3_vl" else 1
            tokens = [VIDEO_TOKEN] * (video_counts.pop(0) // frames)
            for _ in range(frames):
                ids += [*_words(1, generator), VISION_START, *tokens, VISION_END]
            ids += _words(2, generator)
        for _ in range(image_count):
            ids += [VISION_START, *[IMAGE_TOKEN] * image_counts.pop(0), VISION_END, *_words(2, generator)]
        sequences.append(ids + _words(4 + 3 * number, generator))
    length = max(map(len, sequences))
    inputs["input_ids"] = torch.tensor([[0] * (length - len(ids)) + ids for ids in sequences])
    inputs["attention_mask"] = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in sequences])
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = token_types(inputs["input_ids"])
    return inputs


def token_types(input_ids: torch.Tensor) -> torch.Tensor:
    """What Qwen-VL calls `mm_token_type_ids`: 1 at images, 2 at videos."""
    return (input_ids == IMAGE_TOKEN).int() + 2 * (input_ids == VIDEO_TOKEN).int()


def split(
    family: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> list[dict[str, torch.Tensor]]:
    """The samples of a batch as batches of one, without padding."""
    singles = []
    counts = token_counts(model, inputs)
    firsts = [0, 0]
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        single = {
            name: inputs[name][row : row + 1, mask]
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            if name in inputs
        }
        for kind, (token, names) in enumerate(_VISUAL_INPUTS):
            left = int((single["input_ids"] == token).sum())
            last = firsts[kind]
            while left > 0:
                left -= counts[kind][last]
                last += 1
            single |= _slice_visuals(inputs, names, firsts[kind], last)
            firsts[kind] = last
        singles.append(single)
    return singles


def continued(single: dict[str, torch.Tensor], new: Sequence[int]) -> dict[str, torch.Tensor]:
    """A batch of one with tokens after its prompt."""
    added = torch.tensor([new], dtype=torch.long)
    ids = torch.cat([single["input_ids"], added], dim=1)
    whole = {**single, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in single:
        whole["mm_token_type_ids"] = torch.cat(
            [single["mm_token_type_ids"], torch.zeros_like(added).int()], dim=1
        )
    return whole


IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw")
_VISUAL_INPUTS = (
    (IMAGE_TOKEN, IMAGE_INPUTS),
    (VIDEO_TOKEN, ("pixel_values_videos", "second_per_grid_ts", "video_grid_thw")),
)


def _slice_visuals(
    inputs: dict[str, torch.Tensor], names: Sequence[str], first: int, last: int
) -> dict[str, torch.Tensor]:
    """The images, or the videos, from one number up to another."""
    if first == last:
        return {}
    chosen = {name: inputs[name][first:last] for name in names if name in inputs}
    pixels, *_, grids = names
    if grids in inputs:
        sizes = inputs[grids].prod(dim=1).tolist()
        chosen[pixels] = inputs[pixels][sum(sizes[:first]) : sum(sizes[:last])]
    return chosen


def _words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(5, 100, (count,), generator=generator).tolist()


def token_counts(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[list[int], list[int]]:
    """Tokens of each image, and of each video; the model refuses a prompt that does not agree."""
    counts: tuple[list[int], list[int]] = ([], [])
    names = [name for _, names in _VISUAL_INPUTS for name in names if name != "second_per_grid_ts"]
    images = split_images({name: inputs.get(name) for name in names}) or []
    known = _COUNTS.setdefault(model, {})
    forms = [_form(image) for image in images]
    if not known.keys() >= set(forms):
        with torch.no_grad():
            lengths = (len(each.features) for each in encode_images(model, images))
            known.update(zip(forms, lengths, strict=True))
    for image, form in zip(images, forms, strict=True):
        counts[is_video(image)].append(known[form])
    return counts


_COUNTS: weakref.WeakKeyDictionary[PreTrainedModel, dict[Any, int]] = weakref.WeakKeyDictionary()


def _form(image: Mapping[str, torch.Tensor]) -> Any:
    """All that the number of tokens of an image hangs on: shape of its pixels, and its grid or size."""
    return tuple(
        (name, *value.shape) if value.is_floating_point() else (name, *value.flatten().tolist())
        for name, value in sorted(image.items())
    )


# What stock `generate` leaves on a model the first time that it meets a static cache.
_STOCK_STATIC = {"_compiled_call", "_last_compile_config", "_previous_max_cache_length"}


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model that a method could leave changed."""
    modules = {
        name: (
            sorted(vars(module).keys() - _STOCK_STATIC),
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
        )
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
