"""CARVE: the vectors of its specification, naive references, and whole answers of the embedded models."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

import vlmfix
from tests.support import families, zoo
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.methods.image import remembered
from vlmfix.methods.image.carve import carve
from vlmfix.methods.image.carve.carve import (
    CARVE,
    contrast,
    correlation,
    fuse,
)
from vlmfix.methods.image.carve.crop import (
    Refinement,
    bounding_box,
    refine,
    saliency_map,
    select_regions,
    to_image,
)
from vlmfix.methods.image.maps import content_tokens, locate, map_pass, phrase_map
from vlmfix.methods.multi_pass import NO_IMAGE
from vlmfix.models.image_grid.grids import ImageTokens, TokenGrid
from vlmfix.models.profiles import find_profile

PICTURES = [render(sample_scene(3, index)) for index in range(4)]
QUESTIONS = ["What color is the dog?", "Is there a car in the image?", "How many cats are there?"]
MODELS = ["tiny-llava", "tiny-qwen2.5-vl"]

QUESTION = torch.tensor([[[0.010, 0.040, 0.020, 0.010], [0.010, 0.060, 0.010, 0.010]]])
INSTRUCTION = torch.tensor([[[0.020, 0.020, 0.020, 0.010], [0.010, 0.020, 0.040, 0.010]]])
SALIENCY = np.array(
    [[9, 8, 0, 0, 0, 7], [7, 0, 0, 0, 0, 6], [0, 0, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 4, 4, 4]],
    dtype=float,
)


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[Any, Any]]:
    return {name: vlmfix.load(name) for name in MODELS}


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, loaded: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    return loaded[request.param]


@pytest.fixture
def llava_pair(loaded: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    return loaded["tiny-llava"]


def test_vector_of_the_contrast() -> None:
    expected = torch.tensor([[[0.5, 1.999999, 1.0, 0.999999], [0.999999, 2.999999, 0.25, 0.999999]]])
    torch.testing.assert_close(contrast(QUESTION, INSTRUCTION, 1e-8), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (1e-8, (2.499998, 7.999996, 1.499999, 2.999997)),
        (0.05, (0.476190, 2.285714, 0.507937, 0.500000)),
    ],
)
def test_vectors_of_the_fused_map(regularizer: float, expected: tuple[float, ...]) -> None:
    fused = fuse(QUESTION, INSTRUCTION, step_mode="all", contrast_regularizer=regularizer)
    torch.testing.assert_close(fused.float(), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("step_mode", carve.STEP_MODES)
def test_fusion_against_loops(step_mode: str) -> None:
    """Generations of different lengths, with plain loops over layers, steps and tokens."""
    generator = torch.Generator().manual_seed(0)
    question, instruction = torch.rand(3, 5, 7, generator=generator), torch.rand(3, 4, 7, generator=generator)
    first = [(0, 0, 1)]  # "content" comes as the mean of some steps
    pairs = {"all": [(t, t, t + 1) for t in range(4)], "first": first, "content": first, "last": [(4, 3, 1)]}

    def naive(formula: Any) -> list[float]:
        return [
            sum(
                weight * formula(float(question[layer, q, token]), float(instruction[layer, g, token]))
                for q, g, weight in pairs[step_mode]
                for layer in range(3)
            )
            for token in range(7)
        ]

    fused = fuse(question, instruction, step_mode=step_mode, contrast_regularizer=0.01)
    assert fused.tolist() == pytest.approx(naive(lambda q, g: q / (g + 0.01)), abs=1e-6)
    expected = np.corrcoef(naive(lambda q, g: q), naive(lambda q, g: g))[0, 1]
    assert correlation(question, instruction, step_mode) == pytest.approx(expected, abs=1e-6)


def test_vector_of_the_phrase_map() -> None:
    """The, red, bus."""
    words = torch.tensor([[[0.4, 0.1, 0.1], [0.05, 0.3, 0.1], [0.1, 0.5, 0.2]]])
    content = torch.tensor([False, True, True])
    torch.testing.assert_close(phrase_map(words, content), torch.tensor([[0.075, 0.4, 0.15]]))
    for every in (torch.ones(3).bool(), torch.zeros(3).bool()):  # without content words, all count
        expected = torch.tensor([[0.183333, 0.3, 0.133333]])
        torch.testing.assert_close(phrase_map(words, every), expected, atol=1e-6, rtol=0)


def test_tokens_of_content_words(pair: tuple[Any, Any]) -> None:
    tokenizer = pair[1].tokenizer
    text = "The image shows two potted plants, and a purple couch. Yes"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = content_tokens(pair[1], ids)
    assert found.shape == (len(ids),)
    left = "".join(tokenizer.decode([each]) for each, keeps in zip(ids, found, strict=True) if keeps)
    assert left.split() == ["image", "shows", "two", "potted", "plants", "purple", "couch"]
    assert content_tokens(pair[1], []).shape == (0,)


def test_map_of_content_words(pair: tuple[Any, Any]) -> None:
    """The steps that write function words are left out of both maps."""
    model, processor = pair
    method = CARVE(step_mode="content", answer_suffix="", max_map_tokens=12)
    asked = "Describe the image."
    result = method.run(model, processor, PICTURES[0], asked, max_new_tokens=1)
    layers = method.resolve(model.config, find_profile(model)).contrast_layers
    means, answers = [], []
    for text in (asked, method.general_instruction):
        inputs = prepare([[PICTURES[0]]], [text], processor)
        passed = map_pass(model, processor, inputs, layers, 12, "test")
        length = passed.attention.shape[1]
        steps = [step for step, keeps in enumerate(passed.content) if keeps] or list(range(length))
        assert len(steps) < length or not passed.content.any()
        means.append(sum(passed.attention[:, step] for step in steps).double() / len(steps))
        answers.append(passed.answer)
    expected = (means[0] / (means[1] + 1e-8)).sum(dim=0)
    located = locate(model, processor, inputs, [PICTURES[0]])
    np.testing.assert_allclose(result.saliency, saliency_map(expected, located[0], (112, 112)), rtol=1e-4)
    assert "image" in result.map_words
    assert set(result.map_words) < set(answers[0].replace(".", "").split())
    assert not CARVE(max_map_tokens=2).run(model, processor, PICTURES[0], asked, max_new_tokens=1).map_words


def test_correlation_of_flat_maps_is_none() -> None:
    assert correlation(torch.ones(1, 1, 4), torch.rand(1, 1, 4), "first") == 0


@pytest.mark.parametrize(
    ("fraction", "regions", "box"),
    [
        (0.2, 1, (0, 0, 2, 2)),
        (0.2, 2, (0, 0, 6, 2)),
        (0.2, 3, (0, 0, 6, 3)),
        (0.3, 3, (0, 0, 6, 5)),
        (0.3, 4, (0, 0, 6, 5)),
    ],
)
def test_vectors_of_the_regions(fraction: float, regions: int, box: tuple[int, ...]) -> None:
    mask = select_regions(SALIENCY, kept_pixel_fraction=fraction, max_regions=regions, region_rule="max")
    assert bounding_box(mask) == box
    sums = {0.2: (24, 13, 5), 0.3: (24, 13, 12, 5)}[fraction]
    assert SALIENCY[mask].sum() == sum(sums[:regions])


def naive_regions(saliency: np.ndarray, fraction: float, regions: int, rule: str) -> np.ndarray:
    """Flood fill from every pixel in raster order, and a stable sort."""
    height, width = saliency.shape
    values = sorted(float(value) for value in saliency.ravel() if not np.isnan(value))
    place = (1 - fraction) * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    threshold = values[low] + (place - low) * (values[high] - values[low])
    left = {(y, x) for y in range(height) for x in range(width) if saliency[y, x] >= threshold}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        stack, region = [start], []
        left.remove(start)
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
        found.append(region)
    if rule == "at_least":
        regions = max(regions, int(len(found) * fraction))
    found.sort(key=lambda region: -sum(saliency[pixel] for pixel in region))
    mask = np.zeros(saliency.shape, dtype=bool)
    for region in found[:regions]:
        for pixel in region:
            mask[pixel] = True
    return mask


@pytest.mark.parametrize("seed", range(12))
def test_regions_against_a_flood_fill(seed: int) -> None:
    generator = np.random.default_rng(seed)
    saliency = generator.integers(0, 4, (11, 13)).astype(float)  # few values, so that sums are often equal
    if seed % 3 == 0:
        saliency[:, :4] = np.nan
    fraction = float(generator.uniform(0.1, 0.6))
    for rule in carve.REGION_RULES:
        for regions in (1, 2, 5):
            settings = {"kept_pixel_fraction": fraction, "max_regions": regions, "region_rule": rule}
            expected = naive_regions(saliency, fraction, regions, rule)
            assert np.array_equal(select_regions(saliency, **settings), expected)


def test_a_share_of_many_regions() -> None:
    saliency = np.zeros((1, 99))
    saliency[0, ::2] = 1 + np.arange(50)
    settings = {"kept_pixel_fraction": 0.5, "max_regions": 3}
    assert select_regions(saliency, **settings, region_rule="at_least").sum() == 25
    assert select_regions(saliency, **settings, region_rule="max").sum() == 3


@pytest.mark.parametrize("saliency", [np.ones((4, 5)), np.full((4, 5), np.nan), np.zeros((4, 5))])
def test_maps_without_a_region_keep_the_whole_image(saliency: np.ndarray) -> None:
    mask = select_regions(saliency, kept_pixel_fraction=0.2, max_regions=1, region_rule="max")
    assert bounding_box(mask) == (0, 0, 5, 4)


def test_grid_on_the_image_against_torch() -> None:
    grid = np.random.default_rng(0).normal(size=(5, 7))
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid)[None, None], size=(60, 90), mode="bilinear", align_corners=False
    )[0, 0]
    seen = to_image(grid, (10, 20, 100, 80), (130, 100))
    np.testing.assert_allclose(seen[20:80, 10:100], expected.numpy(), atol=1e-12)
    assert np.isnan(seen).sum() == 130 * 100 - 90 * 60
    assert not np.isnan(to_image(grid, (-5, -3, 200, 101.5), (130, 100))).any()


def test_box_between_pixels() -> None:
    """A pixel belongs to the box if its centre does; values depend on where the centre lies."""
    seen = to_image(np.array([[1.0, 3.0]]), (0.75, 0.0, 3.75, 1.0), (5, 1))
    # Centres of the two cells: 1.5 and 3.0.
    np.testing.assert_allclose(seen, [[np.nan, 1.0, 1 + 2 * (1.0 / 1.5), 3.0, np.nan]], atol=1e-12)


def test_blocks_that_see_the_same_area_add_up() -> None:
    grids = (
        TokenGrid(0, 1, 1, 1, box=(0, 0, 4, 2)),
        TokenGrid(1, 2, 1, 2, box=(2, 0, 6, 2)),  # with a newline after each row
    )
    values = torch.tensor([1.0, 10.0, 1000.0, 20.0, 1000.0])
    seen = saliency_map(values, ImageTokens(grids, 5), (7, 2))
    row = [1, 1, 11, 11, 10, 10, np.nan]
    np.testing.assert_allclose(seen, [row, [1, 1, 21, 21, 20, 20, np.nan]])


def test_vector_of_the_enlargement() -> None:
    mask = np.zeros((480, 640), dtype=bool)
    mask[100:200, 300:500] = True
    assert refine(Image.new("RGB", (640, 480)), mask).size == (960, 480)


def test_sides_of_the_enlarged_image_are_rounded_down() -> None:
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:27, 30:40] = True
    assert refine(Image.new("RGB", (80, 60)), mask).size == (85, 60)  # 60 / 7 * 10 = 85.7


def test_refined_image_is_black_outside_and_cropped() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (60, 80, 3)).astype(np.uint8)
    mask = np.zeros((60, 80), dtype=bool)
    mask[:30, :40] = True
    mask[10:20, 10:20] = False
    refined = np.asarray(refine(Image.fromarray(pixels), mask))
    assert refined.shape == (60, 80, 3)
    assert refined[27:33, 27:33].max() == 0
    expected = Image.fromarray(pixels * mask[..., None]).crop((0, 0, 40, 30)).resize((80, 60), 1)
    assert np.array_equal(refined, np.asarray(expected))
    whole = refine(Image.fromarray(pixels), np.ones_like(mask))
    assert np.array_equal(np.asarray(whole), pixels)


def test_a_narrow_region_does_not_explode() -> None:
    mask = np.zeros((300, 400), dtype=bool)
    mask[:, 7] = True
    refined = refine(Image.new("RGB", (400, 300)), mask)
    assert refined.width * refined.height == pytest.approx(16 * 400 * 300, rel=0.05)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (28, range(20, 26)),
        (32, range(20, 26)),
        (26, range(20, 26)),
        (24, range(17, 22)),
        (8, range(6, 8)),
        (5, range(4, 5)),
        (1, range(1)),
    ],
)
def test_layers_by_depth(depth: int, layers: range) -> None:
    config = LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": depth})
    assert CARVE().resolve(config, None).contrast_layers == tuple(layers)
    assert CARVE(contrast_layers=0).resolve(config, None).contrast_layers == (0,)
    with pytest.raises(ValueError, match=f"has {depth}; the layers of this model go from 0 to {depth - 1}"):
        CARVE(contrast_layers=(0, depth)).resolve(config, None)


def test_presets() -> None:
    paper = CARVE.paper()
    assert (paper.step_mode, paper.kept_pixel_fraction, paper.max_regions) == ("last", 0.4, 2)
    assert (paper.region_rule, paper.final_images, paper.answer_suffix) == ("max", "refined", "")
    assert CARVE.paper(max_regions=5).max_regions == 5
    assert CARVE(contrast_layers=[3, 1, 3]).contrast_layers == (1, 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"contrast_layers": ()}, "contrast_layers is empty"),
        ({"contrast_layers": (-1,)}, r"contrast_layers is \(-1,\)"),
        ({"step_mode": "mean"}, "step_mode is 'mean'; it must be one of 'all', 'first', 'last'"),
        ({"contrast_regularizer": 0}, "contrast_regularizer is 0"),
        ({"kept_pixel_fraction": 0}, "kept_pixel_fraction is 0"),
        ({"kept_pixel_fraction": 1.1}, "kept_pixel_fraction is 1.1"),
        ({"max_regions": 0}, "max_regions is 0; it must be a whole number from 1 on"),
        ({"max_regions": 1.5}, r"max_regions is 1\.5"),
        ({"region_rule": "most"}, "region_rule is 'most'"),
        (
            {"final_images": "both"},
            r"final_images is 'both'; it must be one of 'original\+refined', 'refined'",
        ),
        ({"general_instruction": " "}, "general_instruction is ' '"),
        ({"answer_suffix": None}, "answer_suffix is None"),
        ({"max_map_tokens": 0}, "max_map_tokens is 0"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CARVE(**parameters)


def test_attached_to_a_plain_generate_it_says_what_it_needs(llava_pair: tuple[Any, Any]) -> None:
    with pytest.raises(
        vlmfix.UnsupportedError, match=r"needs the processor and the image: use vlmfix\.generate"
    ):
        CARVE()(llava_pair[0])


def attention_rows(model: Any, inputs: Any, output: Tensor, layers: tuple[int, ...]) -> Tensor:
    """Image attention of the rows that predict the new tokens, from one eager pass over all of them."""
    decoder = model.get_decoder()
    length = inputs["input_ids"].shape[1]
    rest = {name: value for name, value in inputs.items() if name not in carve._TEXT_INPUTS}
    if "mm_token_type_ids" in inputs:
        rest["mm_token_type_ids"] = (output == model.config.image_token_id).int()
    decoder.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(
                input_ids=output, attention_mask=torch.ones_like(output), output_attentions=True, **rest
            ).attentions
    finally:
        decoder.set_attn_implementation("sdpa")
    image = output[0] == model.config.image_token_id
    rows = slice(length - 1, output.shape[1] - 1)
    return torch.stack([attentions[layer][0, :, rows, image].mean(dim=0) for layer in layers])


def test_answer_step_by_step(pair: tuple[Any, Any]) -> None:
    """Against the whole of the method written down again with plain parts."""
    model, processor = pair
    method = CARVE(contrast_layers=(6, 7), answer_suffix="In one word, please.", max_map_tokens=6)
    refinement = method.run(model, processor, PICTURES[0], QUESTIONS[0], max_new_tokens=9)
    layers = (6, 7)
    maps = []
    for text in (QUESTIONS[0], method.general_instruction):
        inputs = prepare([[PICTURES[0]]], [f"{text} In one word, please."], processor)
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        maps.append(attention_rows(model, inputs, output, layers))
        if text == QUESTIONS[0]:
            new_tokens = output[0, inputs["input_ids"].shape[1] :]
            assert refinement.first_answer == processor.decode(new_tokens, skip_special_tokens=True).strip()
    steps = min(len(maps[0][0]), len(maps[1][0]))
    ratio = (maps[0][:, :steps] / (maps[1][:, :steps] + 1e-8)).double()
    fused = (ratio.sum(dim=0) * (1 + torch.arange(steps))[:, None]).sum(dim=0)
    side = int(len(fused) ** 0.5)
    assert PICTURES[0].size == (112, 112)
    saliency = torch.nn.functional.interpolate(
        fused.view(1, 1, side, side), size=(112, 112), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(refinement.saliency, saliency, rtol=1e-3)
    mask = naive_regions(refinement.saliency, 0.2, 3, "at_least")
    assert refinement.refined
    assert refinement.reason == ""
    assert refinement.box == bounding_box(mask)
    refined = refine(PICTURES[0], mask)
    assert np.array_equal(np.asarray(refinement.image), np.asarray(refined))
    final = f"{QUESTIONS[0]} In one word, please."
    expected = vlmfix.generate(model, processor, [[PICTURES[0], refined]], final, max_new_tokens=9)
    assert [refinement.answer] == expected


def test_tiles_and_the_whole_image_together(llava_pair: tuple[Any, Any]) -> None:
    """LLaVA-NeXT sees the image twice: squeezed, and in tiles; a wide one, with a portrait beside it."""
    settings = copy.deepcopy(families.FAMILIES["llava_next"].config)
    settings["text_config"]["vocab_size"] = 701
    config = AutoConfig.for_model(
        "llava_next", **settings | {"image_token_index": 3, "image_grid_pinpoints": [[56, 112], [112, 56]]}
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=56, image_grid_pinpoints=config.image_grid_pinpoints
    )
    processor = LlavaNextProcessor(
        image_processor,
        llava_pair[1].tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=llava_pair[1].chat_template,
    )
    pictures = [PICTURES[0].resize((200, 90)), PICTURES[1].resize((60, 110))]
    refinement = CARVE(max_map_tokens=4, contrast_layers=(2, 3)).run(
        model, processor, pictures, QUESTIONS[0], max_new_tokens=4
    )
    assert refinement.saliency is not None
    assert refinement.saliency.shape == (90, 200)
    assert not np.isnan(refinement.saliency).any()


@pytest.mark.slow
def test_every_setting_is_used(llava_pair: tuple[Any, Any]) -> None:
    def saliency(**parameters: Any) -> np.ndarray:
        found = CARVE(max_map_tokens=8, **parameters).run(
            *llava_pair, PICTURES[1], "Describe the image.", max_new_tokens=2
        )
        assert found.saliency is not None
        return found.saliency

    default = saliency()
    assert np.array_equal(default, saliency())
    for changes in (
        {"step_mode": "first"},
        {"step_mode": "last"},
        {"contrast_layers": (3,)},
        {"contrast_regularizer": 0.1},
        {"general_instruction": "What is this?"},
        {"answer_suffix": ""},
    ):
        assert not np.allclose(default, saliency(**changes), rtol=1e-2)


def test_refined_image_alone(llava_pair: tuple[Any, Any]) -> None:
    refinement = CARVE(final_images="refined").run(*llava_pair, PICTURES[2], QUESTIONS[0], max_new_tokens=8)
    assert refinement.refined
    final = f"{QUESTIONS[0]} {CARVE().answer_suffix}"
    assert refinement.answer == vlmfix.generate(*llava_pair, refinement.image, final, max_new_tokens=8)


@pytest.mark.parametrize("final_images", carve.FINAL_IMAGES)
def test_the_image_with_the_largest_total_is_refined(final_images: str, llava_pair: tuple[Any, Any]) -> None:
    small = PICTURES[1].resize((20, 24))
    large = PICTURES[2].resize((240, 200))
    pictures = [small, large, small]
    method = CARVE(final_images=final_images, answer_suffix="")
    refinement = method.run(*llava_pair, pictures, QUESTIONS[0], max_new_tokens=8)
    assert refinement.original is not None
    assert refinement.original.size == large.size
    assert np.array_equal(np.asarray(refinement.original), np.asarray(large))
    assert refinement.saliency is not None
    assert refinement.saliency.shape == (200, 240)
    assert np.isnan(refinement.saliency[:, :20]).all()
    assert not np.isnan(refinement.saliency[:, 20:220]).any()
    assert refinement.refined
    shown = [small, refinement.image, small] if final_images == "refined" else [*pictures, refinement.image]
    assert [refinement.answer] == vlmfix.generate(*llava_pair, [shown], QUESTIONS[0], max_new_tokens=8)


def test_further_questions_about_an_image_are_cheaper(pair: tuple[Any, Any]) -> None:
    """The map of the instruction is made once an image, and the map passes share the vision encoder."""
    model, processor = pair
    tower = getattr(model.base_model, "visual", None) or model.base_model.vision_tower
    passes: dict[str, int] = {"prompts": 0, "images": 0}

    def count(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if name == "images" or kwargs["inputs_embeds"].shape[1] > 1:
                passes[name] += 1

        return hook

    handles = [
        model.get_decoder().register_forward_pre_hook(count("prompts"), with_kwargs=True),
        tower.register_forward_pre_hook(count("images"), with_kwargs=True),
    ]
    method = CARVE(max_map_tokens=3, kept_pixel_fraction=0.05, max_regions=1, region_rule="max")

    def cost(method: CARVE, picture: Image.Image, question: str) -> tuple[int, int]:
        passes.update(prompts=0, images=0)
        assert method.run(model, processor, picture, question, max_new_tokens=2).refined
        return passes["prompts"], passes["images"]

    try:
        assert cost(method, PICTURES[0], QUESTIONS[0]) == (3, 2)
        assert cost(method, PICTURES[0].copy(), QUESTIONS[2]) == (2, 2)
        assert cost(method, PICTURES[1], QUESTIONS[0]) == (3, 2)
        with vlmfix.VAR()(model):
            assert cost(method, PICTURES[0], QUESTIONS[2]) == (3, 2)
        assert cost(method, PICTURES[0], QUESTIONS[2]) == (2, 2)
        assert cost(copy.deepcopy(method), PICTURES[0], QUESTIONS[2]) == (3, 2)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.slow
def test_remembered_maps_change_nothing_and_are_few(
    llava_pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_REMEMBERED", 2)
    method = CARVE(max_map_tokens=3)
    for index in (0, 1, 2, 0, 2, 1):
        again = method.run(*llava_pair, PICTURES[index], QUESTIONS[1], max_new_tokens=3)
        fresh = CARVE(max_map_tokens=3).run(*llava_pair, PICTURES[index], QUESTIONS[1], max_new_tokens=3)
        assert again.answer == fresh.answer
        assert np.array_equal(again.saliency, fresh.saliency, equal_nan=True)
        (maps,) = method._instruction_maps._values.values()
        assert len(maps) <= 2


def test_a_used_method_travels(llava_pair: tuple[Any, Any]) -> None:
    method = CARVE(max_map_tokens=2)
    method.run(*llava_pair, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    assert pickle.loads(pickle.dumps(method)) == method == CARVE(max_map_tokens=2)
    assert hash(method) == hash(CARVE(max_map_tokens=2))


def test_a_region_that_no_processor_reads_is_left_alone(
    llava_pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carve, "_MAX_ASPECT_RATIO", 0.5)
    refinement = CARVE().run(*llava_pair, PICTURES[0], QUESTIONS[0], max_new_tokens=4)
    assert (refinement.refined, refinement.image, refinement.reason) == (False, None, carve.NARROW)
    assert refinement.answer == vlmfix.generate(*llava_pair, PICTURES[0], QUESTIONS[0], max_new_tokens=4)


DECODING = [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 3.0}]


@pytest.mark.parametrize("decoding", DECODING, ids=["greedy", "beams", "sampling"])
@pytest.mark.parametrize(
    ("method", "picture", "question", "reason"),
    [
        (CARVE(kept_pixel_fraction=1), PICTURES[0], QUESTIONS[0], CARVE.identity_reason),
        (CARVE(), None, QUESTIONS[0], NO_IMAGE),
        (CARVE(), PICTURES[0], CARVE().general_instruction, carve.EQUAL_MAPS),
        (CARVE(kept_pixel_fraction=0.999), PICTURES[0], QUESTIONS[0], carve.WHOLE_IMAGE),
    ],
    ids=["strength zero", "text only", "equal maps", "whole image"],
)
def test_without_refinement_the_answer_is_plain_decoding(
    method: CARVE,
    picture: Image.Image | None,
    question: str,
    reason: str,
    decoding: dict[str, Any],
    pair: tuple[Any, Any],
) -> None:
    torch.manual_seed(0)
    plain = vlmfix.generate(*pair, picture, question, max_new_tokens=12, **decoding)
    torch.manual_seed(0)
    refinement = method.run(*pair, picture, question, max_new_tokens=12, **decoding)
    assert refinement.answer == plain
    assert (refinement.refined, refinement.image, refinement.reason) == (False, None, reason)


@pytest.mark.slow
def test_decoding_of_the_final_answer(llava_pair: tuple[Any, Any]) -> None:
    """The map passes stay greedy and draw no random numbers."""
    question = "Describe the image."
    for decoding in DECODING:
        torch.manual_seed(1)
        refinement = CARVE().run(*llava_pair, PICTURES[3], question, max_new_tokens=12, **decoding)
        assert refinement.refined
        torch.manual_seed(1)
        shown = [[PICTURES[3], refinement.image]]
        assert [refinement.answer] == vlmfix.generate(
            *llava_pair, shown, f"{question} {CARVE().answer_suffix}", max_new_tokens=12, **decoding
        )
        assert refinement.box == CARVE().run(*llava_pair, PICTURES[3], question, max_new_tokens=1).box


def test_map_passes_are_greedy_in_a_model_that_samples(
    llava_pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    model, processor = llava_pair
    before = CARVE().run(model, processor, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    for name, value in {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "num_beams": 2}.items():
        monkeypatch.setattr(model.generation_config, name, value)
    after = CARVE().run(model, processor, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    assert before.first_answer == after.first_answer
    assert np.array_equal(before.saliency, after.saliency, equal_nan=True)
    assert not [warning for warning in recwarn if "temperature" in str(warning.message)]


def test_without_a_cache(llava_pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before = CARVE().run(*llava_pair, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    monkeypatch.setattr(llava_pair[0].generation_config, "use_cache", False)
    after = CARVE().run(*llava_pair, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    np.testing.assert_allclose(before.saliency, after.saliency, rtol=1e-3)


def test_the_model_leaves_as_it_entered(llava_pair: tuple[Any, Any]) -> None:
    model, processor = llava_pair

    def state() -> list[Any]:
        return [
            (sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
            for module in model.modules()
        ]

    before = state()
    CARVE().run(model, processor, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    assert state() == before

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = model.get_decoder().layers[7].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        CARVE().run(model, processor, PICTURES[0], QUESTIONS[0], max_new_tokens=1)
    handle.remove()
    assert state() == before


def test_models_and_processors_without_a_known_geometry(
    llava_pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_pair[1].image_processor, "do_pad", True)
    monkeypatch.setattr(llava_pair[1].image_processor, "pad_size", {"height": 112, "width": 112})
    with pytest.raises(vlmfix.UnsupportedError, match="do_pad"):
        CARVE().run(*llava_pair, PICTURES[0], QUESTIONS[0])


@pytest.mark.parametrize("name", ["random_tokens", "adaptinfer"])
def test_refuses_when_image_tokens_are_missing(name: str, llava_pair: tuple[Any, Any]) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="needs the attention on all image tokens, and"):
        vlmfix.generate(*llava_pair, PICTURES[0], QUESTIONS[0], f"carve+{name}")


def test_activity_counts_prompts(llava_pair: tuple[Any, Any]) -> None:
    method = CARVE(max_map_tokens=2)
    for picture in (PICTURES[0], None):
        method.run(*llava_pair, picture, QUESTIONS[0], max_new_tokens=1)
    edit_stats = method.edit_stats()
    assert (edit_stats.rows, edit_stats.rows_touched, edit_stats.site_share) == (2, 1, 0.5)
    assert edit_stats.rows_skipped == {NO_IMAGE: 1}


def test_pictures_are_saved(llava_pair: tuple[Any, Any], tmp_path: Path) -> None:
    picture = PICTURES[0].resize((160, 112))
    refinement = CARVE().run(*llava_pair, picture, QUESTIONS[0], max_new_tokens=1)
    written = refinement.save(tmp_path / "pictures", "dog")
    assert written == [tmp_path / "pictures" / "dog-map.png", tmp_path / "pictures" / "dog-refined.png"]
    heat = np.asarray(Image.open(written[0]).convert("RGB")).astype(int)
    assert heat.shape == (112, 160, 3)
    assert np.array_equal(heat[:, 2], np.asarray(picture)[:, 2] // 2)  # not seen, darker
    left, top, *_ = refinement.box
    assert (heat[top, left] == 255).all()
    assert np.array_equal(np.asarray(Image.open(written[1])), np.asarray(refinement.image))
    assert Refinement(answer="Yes").save(tmp_path, "none") == []


@pytest.mark.slow
def test_a_type_whose_processor_only_resizes_pictures() -> None:
    """Gemma 3 has no entry for its image tokens: their square is found, and lies over all of the picture."""
    model, processor = zoo.build("gemma3"), zoo.processor("gemma3")
    assert processor is not None
    method = vlmfix.CARVE()
    picture = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 20).convert("RGB")
    assert isinstance(vlmfix.generate(model, processor, picture, "w31 w32", method, max_new_tokens=3), str)
    assert method.edit_stats().rows == 1
