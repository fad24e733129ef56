"""Images preprocessed once are what they are when each prompt has them preprocessed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vlmfix
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.inference.image_processing import each_image_once

PINPOINTS = [[56, 112], [112, 56], [112, 112]]
PROCESSORS: dict[str, Any] = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
    "llava_next": LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
    ),
    "llava_onevision": LlavaOnevisionImageProcessorPil(
        size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
    ),
    "qwen2_vl": Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16),
    "internvl": GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    ),
}


def pictures() -> list[Image.Image]:
    """Three pictures of different shapes, as four prompts and more show them."""
    generator = np.random.default_rng(0)
    one, two, three = (
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((90, 60), (64, 128), (70, 70))
    )
    return [one, two, one, one, three, two]


@pytest.mark.parametrize("name", PROCESSORS)
def test_outputs_are_the_same(name: str) -> None:
    stock, calls = PROCESSORS[name], []

    def counted(images: list[Image.Image], **kwargs: Any) -> Any:
        calls.append(len(images))
        return stock(images, **kwargs)

    processor: Any = SimpleNamespace(image_processor=counted)
    images = pictures()
    expected = stock(images, return_tensors="pt")
    with each_image_once(processor):
        got = processor.image_processor(images, return_tensors="pt")
    assert calls == [3]
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(torch.as_tensor(got[key]), torch.as_tensor(value)), key
    assert processor.image_processor is counted


def test_outputs_that_are_not_known_to_be_one_an_image() -> None:
    calls = []

    def odd(images: list[Image.Image], **kwargs: Any) -> Any:
        calls.append(len(images))
        return {"pixel_values": torch.zeros(7, 3)}

    processor: Any = SimpleNamespace(image_processor=odd)
    with each_image_once(processor):
        assert len(processor.image_processor(pictures())["pixel_values"]) == 7
    assert calls == [3, 6]


@pytest.mark.parametrize("model", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_prompts_of_a_batch(model: str) -> None:
    _, processor = vlmfix.load(model)
    before = dict(vars(processor))
    one, two = (render(sample_scene(5, index)) for index in range(2))
    images, prompts = [[one], [two], [one], [one, two]], ["Hi", "Is there a cat?", "What?", "Compare."]
    shared = prepare(images, prompts, processor)
    apart = prepare([[each.copy() for each in several] for several in images], prompts, processor)
    assert shared.keys() == apart.keys()
    for name, value in apart.items():
        assert torch.equal(shared[name], value), name
    assert vars(processor) == before


def test_the_processor_leaves_as_it_entered() -> None:
    processor: Any = SimpleNamespace(image_processor=PROCESSORS["clip"])
    with each_image_once(processor):
        assert processor.image_processor.size == PROCESSORS["clip"].size
    with pytest.raises(KeyboardInterrupt), each_image_once(processor):
        raise KeyboardInterrupt
    assert processor.image_processor is PROCESSORS["clip"]
    nothing: Any = SimpleNamespace()
    with each_image_once(nothing):
        assert not vars(nothing)
