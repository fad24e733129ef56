"""Token grids and their boxes, through real image processors, on images whose colours are coordinates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import vlmfix
from tests.support import families
from vlmfix.models.image_grid.families import place, token_grids
from vlmfix.models.image_grid.grids import ImageTokens, TokenGrid

PLAIN: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "resample": 2, "image_mean": [0.0] * 3}
SIZES = [(640, 480), (480, 640), (336, 336), (501, 333), (97, 211), (1000, 130)]


def coordinates(width: int, height: int) -> Image.Image:
    """Red grows from 0 to 255 across the image, green down it."""
    red = np.linspace(0, 255, width)[None].repeat(height, axis=0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    pixels = np.stack([red, green, np.full_like(red, 255)], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8))


def patch_means(pixels: Tensor, patch: int) -> Tensor:
    """Mean colour of every patch of tiles `(tiles, 3, height, width)`: `(tiles, rows, columns, 3)`."""
    return torch.nn.functional.avg_pool2d(pixels.float(), patch).permute(0, 2, 3, 1)


def single_prompt(count: int) -> Tensor:
    """Image tokens of a prompt about one image."""
    return torch.tensor([[False] * 3 + [True] * count + [False] * 2])


def check(image: ImageTokens, colours: Tensor, size: tuple[int, int], *, tolerance: float = 0.1) -> None:
    """Compare boxes with what the tokens show, `(tokens, 3)`; the tolerance is in tokens, beside rounding."""
    assert len(colours) == image.count
    for grid in image.grids:
        assert grid.box is not None
        shown = colours[grid.offsets()]
        visible = shown[..., 2] > 0.2 * 255  # black where the processor pads
        assert visible.any()
        columns, rows = torch.arange(grid.columns + 1), torch.arange(grid.rows + 1)
        for axis, edges, cells in ((0, columns, visible), (1, rows, visible.T)):
            low, high, pixels = grid.box[axis], grid.box[axis + 2], size[axis]
            edges = (low + edges * (high - low) / (len(edges) - 1)).clamp(0, pixels)
            seen = shown[..., axis] / shown[..., 2] * (pixels - 1) + 0.5
            error = (seen if axis == 0 else seen.T) - (edges[1:] + edges[:-1]) / 2
            cell = (high - low) / (len(edges) - 1)
            assert error[cells].abs().max() <= tolerance * cell + pixels / 255


def llava_config(**vision: Any) -> PreTrainedConfig:
    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **vision}
    return LlavaConfig(vision_config=vision, vision_feature_select_strategy="default")


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((640, 480), (80, 0, 560, 480)),
        ((480, 640), (0, 80, 480, 560)),
        ((500, 500), (0, 0, 500, 500)),
    ],
)
def test_llava_sees_the_centre_square(size: tuple[int, int], box: tuple[float, ...]) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    inputs = processor(Image.new("RGB", size), return_tensors="pt")
    ((image,),) = token_grids(llava_config(), inputs, single_prompt(576))
    assert image == ImageTokens((TokenGrid(0, 24, 24, 24),), 576)
    (placed,) = place([image], llava_config(), processor, [size])
    assert placed.grids[0].box == pytest.approx(box)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("settings", "vision"),
    [
        ({"size": {"shortest_edge": 336}, "crop_size": 336}, {}),
        ({"size": {"shortest_edge": 360}, "crop_size": 336}, {}),
        ({"size": {"height": 336, "width": 336}, "do_center_crop": False}, {}),
    ],
    ids=["crop", "narrower crop", "squeezed"],
)
def test_llava(settings: dict[str, Any], vision: dict[str, Any], size: tuple[int, int]) -> None:
    processor, config = CLIPImageProcessorPil(**settings, **PLAIN), llava_config(**vision)
    inputs = processor(coordinates(*size), return_tensors="pt")
    colours = patch_means(inputs["pixel_values"], 14).reshape(-1, 3)
    ((image,),) = token_grids(config, inputs, single_prompt(576))
    check(place([image], config, processor, [size])[0], colours, size)


def test_llava_with_siglip_loses_the_edge_that_fills_no_patch() -> None:
    config = LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 60, "patch_size": 14},
        vision_feature_select_strategy="full",
    )
    processor = SiglipImageProcessorPil(size={"height": 60, "width": 60}, **PLAIN)
    inputs = processor(coordinates(300, 120), return_tensors="pt")
    ((image,),) = token_grids(config, inputs, single_prompt(16))
    (placed,) = place([image], config, processor, [(300, 120)])
    assert placed.grids[0].box == pytest.approx((0, 0, 280, 112))
    check(placed, patch_means(inputs["pixel_values"], 14).reshape(-1, 3), (300, 120))


def test_llava_with_a_class_token() -> None:
    config = llava_config(image_size=56)
    config.vision_feature_select_strategy = "full"
    ((image,),) = token_grids(config, {"pixel_values": torch.zeros(1, 3, 56, 56)}, single_prompt(17))
    assert image == ImageTokens((TokenGrid(1, 4, 4, 4),), 17)
    assert image.grids[0].offsets().flatten().tolist() == list(range(1, 17))


@pytest.mark.parametrize("size", [*SIZES, (31, 17), (57, 56)])
def test_qwen(size: tuple[int, int]) -> None:
    config = AutoConfig.for_model("qwen2_5_vl", **families.FAMILIES["qwen2_5_vl"].config)
    limits = {"shortest_edge": 56 * 56, "longest_edge": 256 * 28 * 28}
    processor = Qwen2VLImageProcessorPil(size=limits, patch_size=14, **PLAIN)
    inputs = processor(coordinates(*size), return_tensors="pt")
    count = int(inputs["image_grid_thw"].prod()) // 4
    patches = inputs["pixel_values"].view(count, 4, 3, 2, 14, 14)
    colours = patches.mean(dim=(1, 3, 4, 5))
    ((image,),) = token_grids(config, inputs, single_prompt(count))
    (placed,) = place([image], config, processor, [size])
    assert placed.grids[0].box == (0, 0, *size)
    check(placed, colours, size)


def anyres(family: str, **changes: Any) -> PreTrainedModel:
    """A model that packs tiles of 56 pixels into several canvases."""
    pinpoints = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56], [168, 168]]
    settings = {**families.FAMILIES[family].config, "image_grid_pinpoints": pinpoints, **changes}
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **settings))


def packed(model: PreTrainedModel, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
    """Colours of the patches, laid out by the model's own packing; newlines are NaN."""
    config = model.config
    means = patch_means(pixel_values[0], config.vision_config.patch_size)
    vision = {"clip_vision_model": "default", "siglip_vision_model": None}[config.vision_config.model_type]
    options = {"vision_feature_select_strategy": vision} if vision else {}
    if config.model_type == "llava_onevision":
        options = {"vision_aspect_ratio": config.vision_aspect_ratio}
    newline = torch.full((3,), math.nan)
    features, _ = model.base_model.pack_image_features(
        [means.flatten(1, 2)], image_sizes, image_newline=newline, **options
    )
    return features[0]


@pytest.mark.parametrize("size", [*SIZES, (112, 112), (113, 111), (60, 300), (55, 57)])
@pytest.mark.parametrize(
    ("family", "processor_class", "changes"),
    [
        ("llava_next", LlavaNextImageProcessorPil, {}),
        ("llava_onevision", LlavaOnevisionImageProcessorPil, {}),
        ("llava_onevision", LlavaOnevisionImageProcessorPil, {"vision_aspect_ratio": "anyres_max_1"}),
    ],
    ids=["llava_next", "llava_onevision", "interpolated"],
)
def test_tiles_without_padding(
    family: str, processor_class: Any, changes: dict[str, Any], size: tuple[int, int]
) -> None:
    model = anyres(family, **changes)
    processor = processor_class(
        size={"height": 56, "width": 56},
        crop_size=56,
        image_grid_pinpoints=model.config.image_grid_pinpoints,
        **PLAIN,
    )
    inputs = processor(coordinates(*size), return_tensors="pt")
    colours = packed(model, inputs["pixel_values"], inputs["image_sizes"])
    ((image,),) = token_grids(model.config, inputs, single_prompt(len(colours)))
    (placed,) = place([image], model.config, processor, [size])
    check(placed, colours, size)
    shown = torch.zeros(len(colours), dtype=torch.bool)
    for grid in image.grids:
        shown[grid.offsets()] = True
    assert torch.equal(shown, ~colours.isnan().any(dim=1))
    box = placed.grids[1].box
    cell = (box[2] - box[0]) / placed.grids[1].columns
    assert box == pytest.approx((0, 0, *size), abs=1.01 * cell)


def test_tiles_that_patches_do_not_fill() -> None:
    """The grid lies over the whole tiles; tokens are less than half their size off."""
    vision = {**families.VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
    pinpoints = [[60, 120], [120, 120], [120, 60]]
    model = anyres(
        "llava_onevision", vision_config={**vision, "image_size": 60}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 60, "width": 60}, image_grid_pinpoints=pinpoints, **PLAIN
    )
    size = (400, 200)
    inputs = processor(coordinates(*size), return_tensors="pt")
    colours = packed(model, inputs["pixel_values"], inputs["image_sizes"])
    ((image,),) = token_grids(model.config, inputs, single_prompt(len(colours)))
    (placed,) = place([image], model.config, processor, [size])
    assert placed.grids[0].box == pytest.approx((0, 0, 400 * 56 / 60, 200 * 56 / 60))
    check(placed, colours, size, tolerance=0.5)


def test_onevision_pads_one_of_several_images_to_a_square() -> None:
    model = anyres("llava_onevision")
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 56, "width": 56}, image_grid_pinpoints=model.config.image_grid_pinpoints, **PLAIN
    )
    size = (100, 200)
    inputs = processor([[coordinates(*size), coordinates(*size)]], return_tensors="pt")
    assert inputs["batch_num_images"].tolist() == [2]
    images = token_grids(model.config, inputs, single_prompt(34))[0]
    assert images == [ImageTokens((TokenGrid(0, 4, 4, 4),), 17)] * 2
    placed = place(images, model.config, processor, [size, size])
    assert placed[1].grids[0].box == (-50, 0, 150, 200)
    colours = patch_means(inputs["pixel_values"][1], 14).reshape(-1, 3)
    check(placed[1], torch.cat([colours, colours[:1]]), size)


@pytest.mark.parametrize("size", SIZES)
def test_internvl(size: tuple[int, int]) -> None:
    model = families.build("internvl")
    processor = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=6, **PLAIN)
    inputs = processor(coordinates(*size), return_tensors="pt", crop_to_patches=True)
    means = patch_means(inputs["pixel_values"], 14).contiguous()
    tokens = model.base_model.pixel_shuffle(means, scale_factor=0.5)
    colours = tokens.reshape(-1, 4, 3).mean(dim=1)
    ((image,),) = token_grids(model.config, inputs, single_prompt(len(colours)))
    assert len(image.grids) == len(means)
    check(place([image], model.config, processor, [size])[0], colours, size, tolerance=0.2)


def test_counts_agree_with_every_model(family: str, model: PreTrainedModel) -> None:
    """Batches of prompts about different numbers of images, against the model's own features."""
    inputs = families.prompt(family, model, (1, 2, 0, 1))
    image_tokens = inputs["input_ids"] == families.IMAGE_TOKEN
    prompts = token_grids(model.config, inputs, image_tokens)
    assert [len(images) for images in prompts] == [1, 2, 0, 1]
    counts = [image.count for images in prompts for image in images]
    assert counts == families.token_counts(model, inputs)[0]


@pytest.mark.parametrize("family", [name for name, each in families.FAMILIES.items() if each.videos])
def test_grids_of_videos_beside_images(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 0, 0, 2), videos=(1, 2, 0, 0))
    image_tokens = families.token_types(inputs["input_ids"]) == 1
    video_tokens = families.token_types(inputs["input_ids"]) == 2
    prompts = token_grids(model.config, inputs, image_tokens | video_tokens, video_tokens)
    images, videos = families.token_counts(model, inputs)
    assert [[each.count for each in prompt] for prompt in prompts] == [
        [videos[0], images[0]],
        videos[1:],
        [],
        images[1:],
    ]
    frames = [3, 3, 3] if family == "llava_onevision" else [2, 3, 2]
    assert [len(each.grids) for each in (prompts[0][0], *prompts[1])] == frames
    with pytest.raises(vlmfix.UnsupportedError, match="pass the inputs of one processor call"):
        token_grids(model.config, inputs, image_tokens | video_tokens, image_tokens)


def test_grids_that_do_not_make_the_number_of_tokens() -> None:
    inputs = {"pixel_values": torch.zeros(1, 3, 336, 336)}
    with pytest.raises(vlmfix.UnsupportedError, match=r"\[576\] tokens, but the prompts hold \[575\]"):
        token_grids(llava_config(), inputs, single_prompt(575))
    with pytest.raises(vlmfix.UnsupportedError, match=r"\[\] tokens"):
        token_grids(llava_config(), {}, single_prompt(576))
    with pytest.raises(vlmfix.UnsupportedError, match="hold \\[0\\]"):
        token_grids(llava_config(), inputs, single_prompt(0))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (Qwen2VLImageProcessorPil(), "where Qwen2VLImageProcessorPil cuts images of llava is not known"),
        (CLIPImageProcessorPil(do_pad=True), "do_pad"),
        (CLIPImageProcessorPil(size={"shortest_edge": 200}, crop_size=336), "pads an image of 266 x 200"),
        (
            CLIPImageProcessorPil(size={"shortest_edge": 200, "longest_edge": 300}),
            "set shortest_edge, or height and width",
        ),
    ],
)
def test_processors_that_are_refused(processor: Any, message: str) -> None:
    image = ImageTokens((TokenGrid.plain(0, 24, 24),), 576)
    with pytest.raises(vlmfix.UnsupportedError, match=message):
        place([image], llava_config(), processor, [(640, 480)])


def test_models_that_are_refused() -> None:
    image = ImageTokens((TokenGrid.plain(0, 4, 4),), 16)
    with pytest.raises(vlmfix.UnsupportedError, match="image of gemma3 under do_center_crop is not known"):
        place([image], AutoConfig.for_model("gemma3"), CLIPImageProcessorPil(), [(64, 64)])
    tiles = ImageTokens((TokenGrid.plain(0, 2, 2), TokenGrid.plain(4, 2, 2)), 8)
    resized = CLIPImageProcessorPil(do_center_crop=False)
    with pytest.raises(vlmfix.UnsupportedError, match="image of gemma3 in 2 blocks is not known"):
        place([tiles], AutoConfig.for_model("gemma3"), resized, [(64, 64)])
    [whole] = place([image], AutoConfig.for_model("gemma3"), resized, [(64, 48)])
    assert whole.grids[0].box == (0, 0, 64, 48)
    pixtral = LlavaConfig(vision_config={"model_type": "pixtral"}, vision_feature_select_strategy="full")
    with pytest.raises(vlmfix.UnsupportedError, match="fit no grid"):
        token_grids(pixtral, {"pixel_values": torch.zeros(1, 3, 64, 64)}, single_prompt(15))
    model = anyres("llava_next")
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": 56}, crop_size=56)
    image = ImageTokens((TokenGrid.plain(0, 4, 4),), 17)
    with pytest.raises(vlmfix.UnsupportedError, match="image_grid_pinpoints"):
        place([image], model.config, processor, [(64, 64)])
    with pytest.raises(vlmfix.UnsupportedError, match=r"tiles of .* but the vision encoder reads 56"):
        place([image], model.config, LlavaNextImageProcessorPil(), [(64, 64)])
