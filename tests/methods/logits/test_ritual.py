"""RITUAL: the vector, its transforms against plain loops, pixels as pictures, and the branch read alone."""

from __future__ import annotations

import colorsys
import math
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    Inputs,
    answered,
    check_branches,
    images_of,
    in_some_ways,
    last_logits,
)
from vlmfix.engine.vision_cache import split_images
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.methods.logits import ritual
from vlmfix.methods.logits.base import plausible
from vlmfix.methods.logits.branch_prompts import seeded
from vlmfix.methods.logits.ritual import (
    add,
    blur,
    crop,
    draw_transform,
    jitter,
    rotate,
)
from vlmfix.models.embedded import EMBEDDED
from vlmfix.models.pixels import PixelForm

NOISE = numpy.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=numpy.uint8)


def levels(picture: Image.Image) -> numpy.ndarray:
    return numpy.array(picture).astype(int)


def test_vector() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
    mixed = add(logits, torch.tensor([[1.8, 1.6, 0.2, -0.5, -2.0]]), 3.0)
    torch.testing.assert_close(mixed[0, :3], torch.tensor([7.4, 5.8, 1.1]), atol=1e-6, rtol=0)
    shares = mixed.masked_fill(~plausible(logits, 0.1), -math.inf).softmax(-1)[0]
    torch.testing.assert_close(shares, torch.tensor([0.830749, 0.167725, 0.001526, 0, 0]), atol=1e-6, rtol=0)


def test_banned_tokens() -> None:
    logits, branch = torch.tensor([[1.0, -math.inf, 0.0]]), torch.tensor([[2.0, 1.0, -math.inf]])
    assert add(logits, branch, 2.0).tolist() == [[5.0, -math.inf, 2.0]]


def test_rotation() -> None:
    """A quarter turn of a square, and a pixel that goes round the centre; what comes in is black."""
    square = NOISE[:, :24]
    assert (levels(rotate(Image.fromarray(square), 90.0)) == numpy.rot90(square)).all()
    turned = levels(rotate(Image.fromarray(NOISE), 30.0))
    assert turned.shape == NOISE.shape
    for y in range(24):
        for x in range(32):
            across, down = x + 0.5 - 16, y + 0.5 - 12
            cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
            column, row = cos * across - sin * down + 16, sin * across + cos * down + 12
            if min(column % 1, row % 1) < 0.01 or max(column % 1, row % 1) > 0.99:
                continue  # on the border of two pixels
            inside = 0 <= column < 32 and 0 <= row < 24
            assert (turned[y, x] == (NOISE[int(row), int(column)] if inside else 0)).all()


def test_jitter_against_loops() -> None:
    def blend(one: Any, other: Any, factor: float) -> Any:
        return [min(max(a + factor * (b - a), 0), 255) for a, b in zip(one, other, strict=True)]

    def grey(pixel: Any) -> float:
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    picture = Image.fromarray(NOISE)
    unchanged = numpy.abs(levels(jitter(picture, 1, 1, 1, 0)) - NOISE)
    assert unchanged.max() <= 8  # a step of the hue is six levels, and levels are whole numbers
    assert unchanged.mean() < 1.5
    pixels = [[float(level) for level in pixel] for pixel in NOISE.reshape(-1, 3)]
    bright = [blend([0, 0, 0], pixel, 1.3) for pixel in pixels]
    mean = sum(map(grey, bright)) / len(bright)
    contrasted = [blend([mean] * 3, pixel, 0.6) for pixel in bright]
    pale = [blend([grey(pixel)] * 3, pixel, 0.5) for pixel in contrasted]
    expected = []
    for pixel in pale:
        hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
        turned = colorsys.hsv_to_rgb((hue + 1 / 3) % 1, saturation, value)
        expected.append([255 * level for level in turned])
    found = levels(jitter(picture, 1.3, 0.6, 0.5, 1 / 3)).reshape(-1, 3)
    assert numpy.abs(found - numpy.array(expected)).max() <= 8
    assert numpy.abs(found - numpy.array(expected)).mean() < 1.5
    assert numpy.abs(found - NOISE.reshape(-1, 3)).max() > 100


def test_blur_against_loops() -> None:
    shares = [math.exp(-0.5 * (step / 1.7) ** 2) for step in range(-6, 7)]
    shares = [share / sum(shares) for share in shares]

    def mirrored(place: int, size: int) -> int:
        place = abs(place)
        return 2 * (size - 1) - place if place >= size else place

    found = levels(blur(Image.fromarray(NOISE), 1.7))
    for y, x in ((0, 0), (23, 31), (11, 17), (3, 30)):
        for channel in range(3):
            total = 0.0
            for down in range(-6, 7):
                for across in range(-6, 7):
                    row, column = mirrored(y + down, 24), mirrored(x + across, 32)
                    total += shares[down + 6] * shares[across + 6] * float(NOISE[row, column, channel])
            assert abs(found[y, x, channel] - total) < 0.51


def test_crop() -> None:
    picture = Image.fromarray(NOISE)
    assert (levels(crop(picture, (0, 0, 32, 24))) == NOISE).all()
    one = levels(crop(picture, (5, 7, 6, 8)))
    assert one.shape == NOISE.shape
    assert (one == NOISE[7, 5]).all()


def test_draws() -> None:
    """Every transform comes, with numbers in their ranges, and none draws from the global stream."""
    state = torch.get_rng_state()
    kinds: dict[str, list[dict[str, Any]]] = {}
    for seed in range(300):
        drawn = draw_transform(torch.Generator().manual_seed(seed), 40, 30)
        function = getattr(drawn, "func", drawn)
        kinds.setdefault(function.__name__, []).append(getattr(drawn, "keywords", {}))
        drawn(Image.fromarray(NOISE))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(kinds) == {"mirror", "flip", "rotate", "jitter", "blur", "crop"}
    assert all(30 <= len(each) <= 80 for each in kinds.values())
    degrees = [each["degrees"] for each in kinds["rotate"]]
    assert min(degrees) < -120 < 120 < max(degrees)
    for name, low, high in (
        ("brightness", 0, 2),
        ("contrast", 0, 2),
        ("saturation", 0, 2),
        ("hue", -0.5, 0.5),
    ):
        values = [each[name] for each in kinds["jitter"]]
        assert low <= min(values) < low + 0.3 * (high - low) < high - 0.3 * (high - low) < max(values) <= high
    assert all(1.5 <= each["sigma"] <= 2 for each in kinds["blur"])
    boxes = [each["box"] for each in kinds["crop"]]
    assert len(set(boxes)) > 20
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        across, down = right - left, bottom - top
        assert 0.07 < across * down / 1200 <= 1
        assert 0.7 < across / down < 1.4


def test_a_box_that_never_fits() -> None:
    assert ritual._draw_box(lambda low, high: high, 3, 100) == (0, 0, 3, 100)


@pytest.mark.parametrize("name", EMBEDDED)
def test_pixels_are_the_picture_that_was_resized(name: str) -> None:
    model, processor = vlmfix.load(name)
    picture = render(demo_scene()).resize((96, 144), Image.Resampling.BICUBIC)
    inputs = processor.image_processor(images=[picture], return_tensors="pt")
    (image,) = split_images(inputs) or []
    form = PixelForm.of(processor.image_processor, model.config)
    (seen,) = form.pictures(image)
    if "image_grid_thw" in image:  # a size that needs no resizing
        assert (levels(seen) == levels(picture)).all()
    else:
        assert seen.size == (112, 112)
        cut = picture.resize((112, 168), Image.Resampling.BICUBIC).crop((0, 28, 112, 140))
        assert numpy.abs(levels(seen) - levels(cut)).max() <= 1
    torch.testing.assert_close(form.pixels([seen], image), image["pixel_values"], atol=1e-6, rtol=1e-5)


def test_processors_that_do_not_scale(llava: PreTrainedModel) -> None:
    raw = SimpleNamespace(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_normalize=False,
        do_rescale=False,
        rescale_factor=1 / 255,
    )
    image = {"pixel_values": torch.from_numpy(NOISE).permute(2, 0, 1)[None].float()}
    form = PixelForm.of(raw, llava.config)
    assert (levels(form.pictures(image)[0]) == NOISE).all()
    assert torch.equal(form.pixels(form.pictures(image), image), image["pixel_values"])


@in_some_ways
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    form = PixelForm.of(families.PROCESSOR.image_processor, model.config)

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        names = ("pixel_values", "image_sizes", "image_grid_thw")
        changed = []
        for image in split_images({name: single[name] for name in names if name in single}) or []:
            pictures = form.pictures(image)
            transform = draw_transform(seeded(image["pixel_values"], 5), *pictures[0].size)
            changed.append(form.pixels([transform(picture) for picture in pictures], image))
        return [last_logits(model, answered(single, new) | {"pixel_values": torch.cat(changed)})]

    check_branches(model, family, vlmfix.RITUAL(beta=0.001, seed=5, fused=fused), inputs, alone, **way)


def test_crops_of_one_image_are_transformed_alike(
    models: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """InternVL lists two crops and a thumbnail as three images; the next prompt has one."""
    model = models["internvl"]
    ids = torch.tensor(
        [[1, *[families.IMAGE_TOKEN] * 12, 8, 9], [0] * 8 + [1, *[families.IMAGE_TOKEN] * 4, 5, 6]]
    )
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    inputs["pixel_values"] = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    drawn = []

    def draw(generator: torch.Generator, width: int, height: int) -> Any:
        drawn.append([])

        def transform(picture: Image.Image) -> Image.Image:
            drawn[-1].append(picture)
            return picture

        return transform

    monkeypatch.setattr(ritual, "draw_transform", draw)
    with vlmfix.RITUAL()(model, families.PROCESSOR):
        model.generate(**inputs, max_new_tokens=1, num_beams=2)
    assert [len(each) for each in drawn] == [3, 1]


def test_needs_a_processor_that_makes_pixels(llava: PreTrainedModel) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="RITUAL needs the processor"):
        vlmfix.RITUAL()(llava).__enter__()
    bare = SimpleNamespace(image_processor=SimpleNamespace())
    with (
        vlmfix.RITUAL()(llava, bare),
        pytest.raises(vlmfix.UnsupportedError, match="has no image_mean and image_std"),
    ):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=1)


@pytest.mark.parametrize("parameters", [{"kappa": -1}, {"seed": -1}, {"seed": 1.5}, {"fused": 1}])
def test_values_out_of_range(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(parameters))} is .*; it must be"):
        vlmfix.RITUAL(**parameters)
