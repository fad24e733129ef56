"""Tiny random models of every image-text-to-text type of transformers, and prompts with pictures for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from tests.support.zoo.processors import Recipe, make, numbers, tokenizer
from tests.support.zoo.shrink import FIRST_MARKER, IMAGE_TOKEN, tiny
from tests.support.zoo.towers import without_timm
from tests.support.zoo.types import ALWAYS_PICTURES, NO_PROCESSOR, NOT_LOADED, TYPES, UNBUILT

__all__ = [
    "ALWAYS_PICTURES",
    "NOT_LOADED",
    "NO_PROCESSOR",
    "TYPES",
    "UNBUILT",
    "build",
    "processor",
    "prompt",
    "split",
    "without_images",
]

PICTURE_SIZES = ((56, 56), (84, 56), (56, 112))
_CONFIGS: dict[str, dict[str, Any]] = {}
_PROCESSORS: dict[str, ProcessorMixin] = {}
_TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {}
_ROWS: dict[tuple[str, tuple[int, ...]], list[dict[str, int]]] = {}


def _config(name: str) -> dict[str, Any]:
    if name not in _CONFIGS:
        _CONFIGS[name] = tiny(TYPES[name].base or name, TYPES[name].config)
    return _CONFIGS[name]


def build(name: str, *, seed: int = 0, **kwargs: Any) -> PreTrainedModel:
    """A random model in evaluation mode, its attention far from uniform, and its pictures not lost."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(TYPES[name].base or name, **_config(name))
    with without_timm():
        model = AutoModelForImageTextToText.from_config(config, **kwargs).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    _enliven(model)
    return model


def _enliven(model: PreTrainedModel) -> None:
    """Weights far enough from 0 to matter: projections, sinks and gates that start there too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                # Experts are stacked; one of them reads one of the two other dimensions.
                inputs = min(parameter.shape[1:]) if "experts" in name else parameter[0].numel()
                parameter.normal_(0, inputs**-0.5)
            elif parameter.abs().max() == 0:
                parameter.normal_(0, 0.1)


def processor(name: str) -> ProcessorMixin | None:
    """A real processor with a tokenizer of words; None if `NO_PROCESSOR` has the name."""
    return None if name in NO_PROCESSOR else _processor(name)


def _processor(name: str) -> Any:
    if name not in _PROCESSORS:
        recipe = TYPES[name].recipe
        _PROCESSORS[name] = make(recipe, numbers(recipe, _config(name)))
    return _PROCESSORS[name]


def prompt(
    name: str, model: PreTrainedModel, images: Sequence[int] = (1,), *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Left-padded inputs of a batch.

    Args:
        images: number of pictures in each prompt; prompts differ in length and words, pictures in size.
    """
    if TYPES[name].one_image and max(images) > 1:
        raise ValueError(f"{name} takes one picture in a prompt")
    if name in ALL_OR_NONE and 0 < images.count(0) < len(images):
        raise ValueError(f"{name} takes a picture in every prompt of a batch, or in none")
    generator = torch.Generator().manual_seed(seed)
    singles = []
    drawn = 0
    for number, count in enumerate(images):
        pictures = [_picture(drawn + index, generator) for index in range(count)]
        drawn += count
        single = _single(name, pictures, number, generator)
        if model.config.is_encoder_decoder:
            single["decoder_input_ids"] = torch.tensor([[1]])
        singles.append(
            {
                key: value.to(model.dtype) if value.is_floating_point() else value
                for key, value in single.items()
            }
        )
    return _collate(name, singles)


def _picture(number: int, generator: torch.Generator) -> Image.Image:
    """Coarse blocks of colour, which no average over a patch washes out."""
    width, height = PICTURE_SIZES[number % len(PICTURE_SIZES)]
    blocks = torch.randint(0, 256, (height // 7, width // 7, 3), generator=generator).byte().numpy()
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def _words(count: int, generator: torch.Generator) -> str:
    return " ".join(f"w{number}" for number in torch.randint(5, 97, (count,), generator=generator).tolist())


def _single(
    name: str, pictures: list[Image.Image], number: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    recipe = TYPES[name].recipe
    item = recipe.item or recipe.image
    parts = [_words(3, generator)]
    for _ in pictures:
        parts += [item, _words(2, generator)]
    if not recipe.image:
        return _pictures_alone(name, recipe, pictures)
    text = " ".join([*parts, _words(4 + 3 * number, generator)])
    if recipe.draw is not None:
        return _drawn(name, recipe, pictures, text)
    if not pictures and recipe.processor in PICTURES_ASKED_FOR:
        return dict(_processor(name).tokenizer([text], return_tensors="pt", return_token_type_ids=False))
    images = ([pictures] if recipe.nested else pictures) if pictures else None
    made = _processor(name)(text=[text], images=images, return_tensors="pt", **recipe.call)
    return {key: value for key, value in made.items() if key != "labels"}


def _pictures_alone(name: str, recipe: Recipe, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Inputs of encoder-decoders that read no text at all."""
    if recipe.draw is not None:
        return recipe.draw(pictures)[0]
    return dict(_processor(name)(images=pictures, return_tensors="pt"))


def _drawn(name: str, recipe: Recipe, pictures: list[Image.Image], text: str) -> dict[str, torch.Tensor]:
    """The inputs that the stand-in of a processor makes."""
    tensors, blocks = recipe.draw(pictures) if pictures else ({}, [])
    before, *behind = text.split(recipe.item or recipe.image)
    text = before + "".join(block + part for block, part in zip(blocks, behind, strict=True))
    if name not in _TOKENIZERS:
        _TOKENIZERS[name] = tokenizer(recipe, numbers(recipe, _config(name)))
    tokens = _TOKENIZERS[name](text, return_tensors="pt", return_token_type_ids=False)
    inputs = {**tokens, **tensors}
    if recipe.token_types:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return inputs


# What has values for each token of the prompt, and what pads other inputs that differ in size.
PER_TOKEN = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "moe_mm_token_type_ids",
    "cross_attention_mask",
    "image_attention_mask",
    "image_embeds_position_mask",
}
# Processors that make nothing of a text alone, and types whose pictures are counted by the row.
PICTURES_ASKED_FOR = {
    "GotOcr2Processor",
    "Kosmos2_5Processor",
    "PPChart2TableProcessor",
    "PaliGemmaProcessor",
}
ALL_OR_NONE = {"fuyu", "git", "mllama"}
POOLING = "image_token_pooling"
PADDING = {"image_position_ids": -1, "image_token_pooling": -1}


def _collate(name: str, singles: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    length = max(single.get("input_ids", torch.zeros(1, 1)).shape[1] for single in singles)
    keys = dict.fromkeys(key for single in singles for key in single)
    inputs = {}
    for key in keys:
        if key in PER_TOKEN and "input_ids" in keys:  # some processors leave it out where there is no picture
            for single in singles:
                single.setdefault(key, torch.zeros_like(single["input_ids"]))
        values = [single[key] for single in singles if key in single]
        joined = _joined(name, key)
        if key in PER_TOKEN and "input_ids" in keys:
            values = [
                torch.cat([value.new_zeros(1, length - value.shape[1], *value.shape[2:]), value], dim=1)
                for value in values
            ]
        if key == POOLING:
            values = _shifted(values, singles, 1)
        inputs[key] = torch.cat(_same_shape(values, PADDING.get(key, 0), joined), dim=joined)
    _ROWS[_row_key(name, inputs)] = [
        {key: value.shape[_joined(name, key)] for key, value in single.items()} for single in singles
    ]
    return inputs


def _shifted(
    values: list[torch.Tensor], singles: list[dict[str, torch.Tensor]], sign: int
) -> list[torch.Tensor]:
    """Numbers of patches that count over all pictures of a batch."""
    first = 0
    result = []
    for value, single in zip(values, (each for each in singles if POOLING in each), strict=True):
        result.append(torch.where(value < 0, value, value + sign * first))
        first += single["pixel_values"].shape[:2].numel()
    return result


def _row_key(name: str, inputs: dict[str, torch.Tensor]) -> tuple[str, tuple[int, ...]]:
    return name, tuple(inputs.get("input_ids", next(iter(inputs.values()))).flatten().tolist())


def _joined(name: str, key: str) -> int:
    recipe = TYPES[name].recipe
    return recipe.joined if key == "pixel_values" else 0


def _same_shape(values: list[torch.Tensor], fill: int, joined: int) -> list[torch.Tensor]:
    """Tensors that differ in one dimension at most, the others padded behind."""
    shape = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    padded = []
    for value in values:
        shape[joined] = value.shape[joined]
        whole = value.new_full(shape, fill)
        whole[tuple(slice(size) for size in value.shape)] = value
        padded.append(whole)
    return padded


def split(
    name: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> list[dict[str, torch.Tensor]]:
    """The samples of a batch of `prompt` as batches of one, without padding."""
    rows = _ROWS[_row_key(name, inputs)]
    starts = dict.fromkeys(inputs, 0)
    singles = []
    for number, counts in enumerate(rows):
        mask = inputs["attention_mask"][number].bool() if "input_ids" in inputs else ...
        single = {}
        for key, count in counts.items():
            chosen = inputs[key].narrow(_joined(name, key), starts[key], count)
            single[key] = chosen[:, mask] if key in PER_TOKEN else chosen
            starts[key] += count
        singles.append(single)
    if POOLING in inputs:
        shifted = _shifted([single[POOLING] for single in singles if POOLING in single], singles, -1)
        for single in singles:
            if POOLING in single:
                single[POOLING] = shifted.pop(0)
    return singles


def without_images(
    name: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The prompts without their pictures: no tensors, placeholders or markers around them.

    Not for the types of `ALWAYS_PICTURES`.
    """
    rows = [
        [token for token, real in zip(ids, mask, strict=True) if real and token < FIRST_MARKER]
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    ]
    length = max(map(len, rows))
    result = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }
    if "decoder_input_ids" in inputs:
        result["decoder_input_ids"] = inputs["decoder_input_ids"]
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            result[key] = torch.zeros_like(result["input_ids"])
    return result
