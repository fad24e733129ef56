"""Tiny random models of every image-text-to-text type of transformers, and prompts with pictures for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from tests.support.zoo.processors import Recipe, make, numbers, tokenizer
from tests.support.zoo.shrink import FIRST_MARKER, IMAGE_TOKEN, tiny
from tests.support.zoo.types import TYPES

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
                fan = parameter[0].numel()
                parameter.normal_(0, 1.0 / fan**0.5)
            elif parameter.std(correction=0) == 0 and parameter.abs().max() == 0:
                parameter.normal_(0, 0.1)


def processor(name: str) -> ProcessorMixin | None:
    """A real processor with a tokenizer of words; None if `NO_PROCESSOR` has the name."""
    recipe = TYPES[name].recipe
    if recipe is None or not recipe.processor:
        return None
    if name not in _PROCESSORS:
        _PROCESSORS[name] = make(recipe, numbers(recipe, _config(name)))
    return _PROCESSORS[name]


def prompt(
    name: str, model: PreTrainedModel, images: Sequence[int] = (1,), *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Left-padded inputs of a batch.

    Args:
        images: number of pictures in each prompt; prompts differ in length and words, pictures in size.
    """
    generator = torch.Generator().manual_seed(seed)
    singles = []
    drawn = 0
    for number, count in enumerate(images):
        pictures = [_picture(drawn + index, generator) for index in range(count)]
        drawn += count
        singles.append(_single(name, pictures, number, generator))
    return _collate(name, singles)


def _picture(number: int, generator: torch.Generator) -> Image.Image:
    width, height = PICTURE_SIZES[number % len(PICTURE_SIZES)]
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator).byte().numpy())


def _words(count: int, generator: torch.Generator) -> str:
    return " ".join(f"w{number}" for number in torch.randint(5, 97, (count,), generator=generator).tolist())


def _single(
    name: str, pictures: list[Image.Image], number: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    recipe = TYPES[name].recipe
    assert recipe is not None
    item = recipe.item or recipe.image
    parts = [_words(3, generator)]
    for _ in pictures:
        parts += [item, _words(2, generator)]
    text = " ".join([*parts, _words(4 + 3 * number, generator)])
    if recipe.draw is not None:
        return _drawn(name, recipe, pictures, text)
    images = ([pictures] if recipe.nested else pictures) if pictures else None
    made = processor(name)(text=[text], images=images, return_tensors="pt", **recipe.call)
    return {key: value for key, value in made.items() if key != "labels"}


def _drawn(name: str, recipe: Recipe, pictures: list[Image.Image], text: str) -> dict[str, torch.Tensor]:
    """The inputs that the stand-in of a processor makes."""
    tensors, blocks = recipe.draw(pictures) if pictures and recipe.draw else ({}, [])
    before, *behind = text.split(recipe.item or recipe.image)
    text = before + "".join(block + part for block, part in zip(blocks, behind, strict=True))
    if name not in _TOKENIZERS:
        _TOKENIZERS[name] = tokenizer(recipe, numbers(recipe, _config(name)))
    tokens = _TOKENIZERS[name](text, return_tensors="pt", return_token_type_ids=False)
    inputs = {**tokens, **tensors}
    if recipe.token_types:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).long()
    return inputs


def _per_token(single: dict[str, torch.Tensor]) -> set[str]:
    """Names of what has one row of values for each token of the prompt."""
    shape = single["input_ids"].shape
    return {key for key, value in single.items() if value.shape[:2] == shape and not key.startswith("qformer")}


def _collate(name: str, singles: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    length = max(single["input_ids"].shape[1] for single in singles)
    keys = dict.fromkeys(key for single in singles for key in single)
    inputs = {}
    per_token = _per_token(singles[0])
    for key in keys:
        values = [single[key] for single in singles if key in single]
        if key in per_token:
            values = [
                torch.cat([value.new_zeros(1, length - value.shape[1], *value.shape[2:]), value], dim=1)
                for value in values
            ]
        inputs[key] = torch.cat(_same_shape(values))
    _ROWS[name, tuple(inputs["input_ids"].flatten().tolist())] = [
        {key: len(value) for key, value in single.items()} for single in singles
    ]
    return inputs


def _same_shape(values: list[torch.Tensor]) -> list[torch.Tensor]:
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        whole = value.new_zeros([len(value), *shape])
        whole[(slice(None), *(slice(size) for size in value.shape[1:]))] = value
        padded.append(whole)
    return padded


def split(
    name: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> list[dict[str, torch.Tensor]]:
    """The samples of a batch of `prompt` as batches of one, without padding."""
    rows = _ROWS[name, tuple(inputs["input_ids"].flatten().tolist())]
    starts = dict.fromkeys(inputs, 0)
    per_token = _per_token(inputs)
    singles = []
    for number, counts in enumerate(rows):
        mask = inputs["attention_mask"][number].bool()
        single = {}
        for key, count in counts.items():
            chosen = inputs[key][starts[key] : starts[key] + count]
            single[key] = chosen[:, mask] if key in per_token else chosen
            starts[key] += count
        singles.append(single)
    return singles


def without_images(
    name: str, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The prompts without their pictures: no tensors, placeholders or markers around them."""
    rows = [
        [token for token, real in zip(ids, mask, strict=True) if real and token < FIRST_MARKER]
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    ]
    length = max(map(len, rows))
    result = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            result[key] = torch.zeros_like(result["input_ids"])
    return result
