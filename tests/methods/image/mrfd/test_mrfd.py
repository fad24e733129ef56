"""MRFD: the vectors of its specification, naive references, and whole answers of the embedded models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaConfig, LogitsProcessor, LogitsProcessorList

import vlmfix
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.methods.image.mrfd import mrfd
from vlmfix.methods.image.mrfd.fusion import (
    AnswerDistribution,
    FusedScores,
    agreement_weights,
    divergences,
    fuse_logits,
)
from vlmfix.methods.image.mrfd.mrfd import MRFD
from vlmfix.methods.image.mrfd.views import FusedAnswer, cells, pixel_box, widest, windows
from vlmfix.methods.multi_pass import NO_IMAGE
from vlmfix.models.image_grid.grids import ImageTokens, TokenGrid

PICTURES = [render(sample_scene(3, index)) for index in range(3)]
CAPTION, IS_THERE = "Describe the image.", "Is there a car in the image?"
MODELS = ["tiny-llava", "tiny-qwen2.5-vl"]
SHARES = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])


@pytest.fixture(scope="module")
def both() -> dict[str, tuple[Any, Any]]:
    return {name: vlmfix.load(name) for name in MODELS}


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, both: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    return both[request.param]


@pytest.fixture
def llava(both: dict[str, tuple[Any, Any]]) -> tuple[Any, Any]:
    return both["tiny-llava"]


def test_vectors_of_agreement() -> None:
    found = divergences(SHARES)
    torch.testing.assert_close(found.float(), torch.tensor([0.130030, 0.118802, 0.241874]), atol=1e-6, rtol=0)
    for temperature, expected in (
        (1.0, [0.344178, 0.348064, 0.307758]),
        (0.1, [0.408895, 0.457482, 0.133623]),
    ):
        weights = agreement_weights(found, temperature).float()
        torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-6, rtol=0)


def test_divergences_of_pairs_and_at_their_ends() -> None:
    for first, second, expected in ((0, 1, 0.006959), (0, 2, 0.253102), (1, 2, 0.230645)):
        pair = divergences(SHARES[[first, second]])
        assert pair.tolist() == pytest.approx([expected, expected], abs=1e-6)
    assert divergences(torch.eye(2)).tolist() == pytest.approx([math.log(2)] * 2)
    assert divergences(SHARES[[0, 0, 0]]).tolist() == [0, 0, 0]
    assert divergences(SHARES[:1]).tolist() == [0]
    assert agreement_weights(torch.zeros(3), 0.15).tolist() == pytest.approx([1 / 3] * 3)


def test_vector_of_the_fusion() -> None:
    logits = torch.tensor([[2, 1, 0], [1.5, 1.6, 0], [0, 0.5, 3]])
    weights = torch.tensor([0.408895, 0.457482, 0.133623])
    fused = fuse_logits(logits, weights)
    torch.testing.assert_close(fused, torch.tensor([-0.970726, -1.267061, -2.073869]), atol=1e-5, rtol=0)
    expected = torch.tensor([0.481843, 0.358269, 0.159888])
    torch.testing.assert_close(fused.softmax(dim=-1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close((weights @ logits).softmax(dim=-1), expected, atol=1e-5, rtol=0)


def test_a_token_that_one_view_rules_out_is_ruled_out() -> None:
    fused = fuse_logits(torch.tensor([[0, -torch.inf], [0, 5.0]]), torch.tensor([0.01, 0.99]))
    assert fused[1] == -torch.inf
    assert not fused.isnan().any()


def test_vector_of_the_windows() -> None:
    saliency = np.array([[1, 2, 0, 0], [3, 9, 1, 0], [0, 1, 0, 4], [0, 0, 5, 6]], dtype=float)
    settings = {"window_fraction": 0.5, "max_window_iou": 0.5}
    assert windows(saliency, count=3, **settings) == [(0, 0), (2, 2), (1, 0)]
    assert windows(saliency, count=2, window_fraction=0.5, max_window_iou=0) == [(0, 0), (2, 2)]
    # No more of them lie beside each other.
    assert len(windows(saliency, count=9, window_fraction=0.5, max_window_iou=0)) == 4
    assert windows(saliency[:2, :2], count=3, window_fraction=1, max_window_iou=0.5) == []


def naive_windows(saliency: np.ndarray, count: int, fraction: float, most: float) -> list[tuple[int, int]]:
    rows, columns = saliency.shape
    side = max(1, round(fraction * min(rows, columns)))
    places = [(row, column) for row in range(rows - side + 1) for column in range(columns - side + 1)]

    def cells_of(place: tuple[int, int]) -> set[tuple[int, int]]:
        return {(place[0] + down, place[1] + across) for down in range(side) for across in range(side)}

    places.sort(key=lambda place: -sum(saliency[cell] for cell in cells_of(place)))
    taken: list[tuple[int, int]] = []
    for place in places:
        own = cells_of(place)
        if all(len(own & cells_of(each)) / len(own | cells_of(each)) <= most for each in taken):
            taken.append(place)
    return taken[:count]


@pytest.mark.parametrize("seed", range(6))
def test_windows_against_sets_of_cells(seed: int) -> None:
    generator = np.random.default_rng(seed)
    saliency = generator.integers(0, 4, (5, 9)).astype(float)  # few values, so that sums are often equal
    for fraction, most in ((0.2, 0.0), (0.5, 0.5), (0.8, 0.3)):
        found = windows(saliency, count=4, window_fraction=fraction, max_window_iou=most)
        assert found == naive_windows(saliency, 4, fraction, most)


def test_windows_on_the_picture() -> None:
    """A block that the processor padded on the right: its last column shows nothing."""
    grid = TokenGrid(2, 2, 3, 4, box=(0, 0, 30, 20))  # with a newline after each row
    values = torch.arange(12.0)
    assert cells(values, grid, (20, 20)).tolist() == [[2, 3, 0], [6, 7, 0]]
    assert pixel_box((0, 1), 2, grid, (20, 20)) == (10, 0, 20, 20)
    assert pixel_box((0, 2), 1, grid, (20, 20)) is None
    assert pixel_box((1, 0), 1, grid, (20, 20)) == (0, 10, 10, 20)
    uneven = TokenGrid(0, 3, 3, 3, box=(0, 0, 10, 10))
    assert pixel_box((1, 1), 1, uneven, (10, 10)) == (3, 3, 7, 7)  # 3.33 to 6.67
    strip = TokenGrid(0, 1, 300, 300, box=(0, 0, 300, 1))
    assert pixel_box((0, 0), 300, strip, (300, 1)) is None


def test_of_tiles_the_block_that_covers_most() -> None:
    grids = (TokenGrid(0, 1, 1, 1, box=(0, 0, 5, 5)), TokenGrid(1, 2, 2, 2, box=(0, 0, 10, 5)))
    assert widest(ImageTokens(grids, 5)) is grids[1]


def test_steps_after_the_end_do_not_count() -> None:
    seen = AnswerDistribution(torch.tensor([2]))
    steps = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    prompt = torch.full((2, 5), 2)  # the id of the end in a prompt ends nothing
    new = torch.tensor([[1, 2, 2], [1, 1, 1]])
    for step, scores in enumerate(steps):
        assert seen(torch.cat([prompt, new[:, :step]], dim=1), scores) is scores
    shares = steps.softmax(dim=-1)
    torch.testing.assert_close(seen.mean, torch.stack([shares[:2, 0].mean(dim=0), shares[:, 1].mean(dim=0)]))


def test_all_rows_draw_the_same_token() -> None:
    fuse = FusedScores(torch.tensor([0.5, 0.5]), [], [])
    drawn = set()
    for _ in range(20):
        scores = fuse(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))
        assert torch.equal(scores[0], scores[1])
        assert scores.isfinite().sum(dim=1).tolist() == [1, 1]
        drawn.add(int(scores[0].argmax()))
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_views": 0}, "num_views is 0; it must be a whole number from 1 to 16"),
        ({"saliency_layers": ()}, "saliency_layers is empty"),
        ({"window_fraction": 0}, "window_fraction is 0"),
        ({"max_window_iou": 1.5}, "max_window_iou is 1.5"),
        ({"weight_temperature": 0}, "weight_temperature is 0; it must be a number from 0.01 to 100"),
        ({"response_tokens": 0}, "response_tokens is 0"),
        ({"region_prompt": "{part} {response}"}, "must be a text with the place {question}"),
        ({"region_prompt": "{question} {other}"}, "must be a text with the place {question}"),
        ({"region_prompt": "{question} {"}, "must be a text with the place {question}"),
        ({"region_prompt": None}, "region_prompt is None"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MRFD(**parameters)


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, range(11, 21)), (28, range(9, 19)), (8, range(3, 5)), (1, [0])]
)
def test_layers_by_depth(depth: int, layers: Any) -> None:
    config = LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": depth})
    assert MRFD().resolve(config, None).saliency_layers == tuple(layers)
    with pytest.raises(ValueError, match=f"has {depth}; the layers of this model go from 0 to {depth - 1}"):
        MRFD(saliency_layers=(0, depth)).resolve(config, None)


def scores_of(model: Any, inputs: Any, tokens: Tensor) -> Tensor:
    """Logits that predict `tokens` after a prompt of one, and the one after them, from a single pass."""
    with torch.no_grad():
        text = torch.cat([inputs["input_ids"], tokens[None]], dim=1)
        rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in rest:
            rest["mm_token_type_ids"] = (text == model.config.image_token_id).int()
        logits = model(input_ids=text, attention_mask=torch.ones_like(text), **rest).logits[0]
    return logits[inputs["input_ids"].shape[1] - 1 :]


@pytest.mark.parametrize("question", [CAPTION, IS_THERE])
def test_answer_step_by_step(question: str, pair: tuple[Any, Any]) -> None:
    """Against the whole of the method written down again with single prompts and without a cache."""
    model, processor = pair
    method = MRFD(
        saliency_layers=(3, 4), response_tokens=5, num_views=3, region_prompt="{response} {question}"
    )
    result = method.run(model, processor, PICTURES[0], question, max_new_tokens=6)
    inputs = prepare([[PICTURES[0]]], [question], processor)
    model.get_decoder().set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
    finally:
        model.get_decoder().set_attn_implementation("sdpa")
    image = inputs["input_ids"][0] == model.config.image_token_id
    rows = torch.stack([attentions[layer][0, :, -1, image].mean(dim=0) for layer in (3, 4)]).mean(dim=0)
    side = int(len(rows) ** 0.5)
    np.testing.assert_allclose(result.saliency, rows.view(side, side).numpy(), rtol=1e-3)
    corners = naive_windows(result.saliency, 2, 0.5, 0.5)
    cell, half = 112 // side, round(0.5 * side)
    boxes = [(x * cell, y * cell, (x + half) * cell, (y + half) * cell) for y, x in corners]
    assert [view.box for view in result.views] == [(0, 0, 112, 112), *boxes]
    images = [PICTURES[0], *(PICTURES[0].crop(box) for box in boxes)]
    assert all(np.array_equal(view.image, each) for view, each in zip(result.views, images, strict=True))
    length = 1 if question == IS_THERE else 5
    shares, prompts = [], []
    for view, each in zip(result.views, images, strict=True):
        alone = prepare([[each]], [question], processor)
        output = model.generate(**alone, max_new_tokens=length, do_sample=False)
        tokens = output[0, alone["input_ids"].shape[1] :]
        shares.append(scores_of(model, alone, tokens[:-1]).softmax(dim=-1).mean(dim=0))
        assert view.response == processor.decode(tokens, skip_special_tokens=True).strip()
        prompts.append(prepare([[each]], [f"{view.response} {question}"], processor))
    weights = agreement_weights(divergences(torch.stack(shares)), 0.15).float()
    assert [view.weight for view in result.views] == pytest.approx(weights.tolist(), abs=1e-4)
    assert len(set(weights.tolist())) > 1
    written = torch.zeros(0, dtype=torch.int64)
    for _ in range(6):
        last = torch.stack([scores_of(model, each, written)[-1] for each in prompts])
        written = torch.cat([written, (weights @ last.log_softmax(dim=-1)).argmax()[None]])
        if int(written[-1]) == model.generation_config.eos_token_id:
            break
    assert result.final is not None
    assert list(result.final.token_ids) == written.tolist()
    assert result.fused
    assert result.reason == ""


@pytest.mark.parametrize(
    ("method", "picture", "reason"),
    [(MRFD(num_views=1), PICTURES[0], MRFD.identity_reason), (MRFD(), None, NO_IMAGE)],
    ids=["strength zero", "text only"],
)
@pytest.mark.parametrize("decoding", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 3.0}])
def test_without_views_the_answer_is_plain_decoding(
    method: MRFD, picture: Any, reason: str, decoding: dict[str, Any], llava: tuple[Any, Any]
) -> None:
    torch.manual_seed(0)
    plain = vlmfix.generate(*llava, picture, CAPTION, max_new_tokens=8, **decoding)
    torch.manual_seed(0)
    result = method.run(*llava, picture, CAPTION, max_new_tokens=8, **decoding)
    assert (result.answer, result.fused, result.reason, result.views) == (plain, False, reason, ())


def test_a_sampled_answer_follows_the_seed_and_its_settings(llava: tuple[Any, Any]) -> None:
    method = MRFD(response_tokens=1, num_views=2)

    def sampled(seed: int, **settings: Any) -> str:
        torch.manual_seed(seed)
        decoding = {"do_sample": True, "temperature": 4.0, **settings}
        return vlmfix.generate(*llava, PICTURES[1], CAPTION, method, max_new_tokens=4, **decoding)

    assert sampled(0) == sampled(0)
    assert len({sampled(seed) for seed in range(2)}) > 1
    greedy = vlmfix.generate(*llava, PICTURES[1], CAPTION, method, max_new_tokens=4)
    for cut in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-3}):
        assert sampled(0, **cut) == greedy


class Ban(LogitsProcessor):
    """Rules out a token, and knows what it was given."""

    def __init__(self, token: int) -> None:
        self.token, self.rows = token, set[int]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.rows.add(len(scores))
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


def test_processors_act_on_the_fused_scores(llava: tuple[Any, Any]) -> None:
    plain = MRFD(num_views=2).run(*llava, PICTURES[0], IS_THERE, max_new_tokens=1)
    assert plain.final is not None
    ban = Ban(plain.final.token_ids[0])
    banned = MRFD(num_views=2).run(
        *llava, PICTURES[0], IS_THERE, max_new_tokens=1, logits_processor=LogitsProcessorList([ban])
    )
    assert banned.answer != plain.answer
    assert ban.rows == {1}
    assert banned.views[0].response == plain.views[0].response


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"num_beams": 2}, "num_beams=2 does not follow; leave num_beams at 1"),
        ({"do_sample": True, "typical_p": 0.5}, "not by typical_p; leave it out"),
    ],
)
def test_decoding_that_views_cannot_share(
    decoding: dict[str, Any], message: str, llava: tuple[Any, Any]
) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match=message):
        vlmfix.generate(*llava, PICTURES[0], CAPTION, "mrfd", **decoding)


def test_the_picture_with_the_most_attention_is_cut(llava: tuple[Any, Any]) -> None:
    pictures = [PICTURES[0].resize((160, 112)), PICTURES[1], PICTURES[2]]
    result = MRFD(num_views=2, response_tokens=2).run(*llava, pictures, CAPTION, max_new_tokens=2)
    inputs = prepare([pictures], [CAPTION], llava[1])
    attention = mrfd.map_pass(*llava, inputs, (3, 4), 1, "test").attention
    chosen = int(attention.mean(dim=(0, 1)).view(3, -1).sum(dim=1).argmax())
    assert result.original is not None
    assert np.array_equal(result.original, pictures[chosen])
    assert result.views[1].image.size == (56, 56)


def test_it_refuses_what_it_cannot_see(llava: tuple[Any, Any]) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="MRFD needs the attention on all image tokens, and"):
        vlmfix.generate(*llava, PICTURES[0], CAPTION, "mrfd+random_tokens")
    with pytest.raises(vlmfix.UnsupportedError, match="CARVE and MRFD ask the model several times each"):
        vlmfix.generate(*llava, PICTURES[0], CAPTION, "carve+mrfd")
    with pytest.raises(vlmfix.UnsupportedError, match="needs the processor and the image: use vlmfix"):
        MRFD()(llava[0])


def test_other_methods_act_in_all_its_passes(llava: tuple[Any, Any]) -> None:
    strong = vlmfix.VHR(num_last_layers=4, head_scale=3.0)
    found: list[FusedAnswer] = []
    for methods in ([MRFD(num_views=2)], [MRFD(num_views=2), strong]):
        vlmfix.generate(*llava, PICTURES[0], CAPTION, methods, max_new_tokens=4, on_refinement=found.append)
    assert [view.response for view in found[0].views] != [view.response for view in found[1].views]
    assert strong.edit_stats().rows == 1 + 2 + 2  # the map, the answers of two views, and the final one


def test_pictures_are_encoded_once(llava: tuple[Any, Any]) -> None:
    encoded = []
    hook = llava[0].base_model.vision_tower.register_forward_pre_hook(
        lambda module, args: encoded.append(len(args[0]))
    )
    try:
        MRFD(num_views=3).run(*llava, PICTURES[0], IS_THERE, max_new_tokens=2)
    finally:
        hook.remove()
    assert encoded == [1, 2]  # the whole picture, then the windows


def test_the_model_leaves_as_it_entered_and_runs_are_counted(llava: tuple[Any, Any]) -> None:
    model = llava[0]

    def state() -> list[Any]:
        return [
            (sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
            for module in model.modules()
        ]

    before, method = state(), MRFD(num_views=2)
    for picture in (PICTURES[0], None):
        method.run(*llava, picture, IS_THERE, max_new_tokens=1)
    assert state() == before
    stats = method.edit_stats()
    assert (stats.rows, stats.rows_touched, stats.rows_skipped) == (2, 1, {NO_IMAGE: 1})


def test_without_a_cache(llava: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method = MRFD(num_views=2, response_tokens=3)
    before = method.run(*llava, PICTURES[0], CAPTION, max_new_tokens=4)
    monkeypatch.setattr(llava[0].generation_config, "use_cache", False)
    after = method.run(*llava, PICTURES[0], CAPTION, max_new_tokens=4)
    assert after.answer == before.answer
    assert after.views[1].weight == pytest.approx(before.views[1].weight, rel=1e-4)


def test_pictures_are_saved(llava: tuple[Any, Any], tmp_path: Path) -> None:
    picture = PICTURES[0].resize((160, 112))
    result = MRFD(num_views=2).run(*llava, picture, IS_THERE, max_new_tokens=1)
    written = result.save(tmp_path / "views", "dog")
    assert [path.name for path in written] == ["dog-map.png", "dog-view-1.png"]
    assert Image.open(written[0]).size == (160, 112)
    assert np.array_equal(Image.open(written[1]), picture.crop(result.views[1].box))
    assert FusedAnswer(answer="Yes").save(tmp_path, "none") == []
