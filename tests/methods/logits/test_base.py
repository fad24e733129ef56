"""Contrastive decoding: the formulas on worked examples, branches against brute force, refusals."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    Alone,
    Inputs,
    answered,
    check_branches,
    images_of,
    in_every_way,
    in_some_ways,
    last_logits,
    text_ids,
    text_logits,
)
from tests.support.methods import acting, attached
from vlmfix.engine.caches import read_cache
from vlmfix.engine.kl import differ
from vlmfix.engine.vision_cache import split_images
from vlmfix.methods.logits.base import (
    contrast,
    finite,
    plausible,
)
from vlmfix.methods.logits.lcd import language_contrast
from vlmfix.methods.logits.m3id import mutual_information
from vlmfix.methods.logits.vcd import add_noise, diffuse, signal_shares

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
BRANCH = torch.tensor([[1.5, 1.2, -0.5, -1.0, 0.0]])
INF = torch.inf
IMAGE_INPUTS = ("pixel_values", "image_sizes", "image_grid_thw")


def close(got: Tensor, expected: list[float], atol: float = 1e-6) -> None:
    torch.testing.assert_close(got[0, : len(expected)], torch.tensor(expected), atol=atol, rtol=0)


def test_plausible() -> None:
    assert plausible(LOGITS, 0.1).tolist() == [[True, True, True, False, False]]
    assert plausible(LOGITS, 0.0).all()
    assert plausible(LOGITS, 1.0).tolist() == [[True, False, False, False, False]]
    for same in (LOGITS.log_softmax(-1), LOGITS + 7):
        assert torch.equal(plausible(same, 0.1), plausible(LOGITS, 0.1))


@pytest.mark.parametrize(
    ("alpha", "expected", "shares"),
    [
        (1.0, [2.5, 0.8, 1.5], [0.644927, 0.117818, 0.237255]),
        (0.5, [2.25, 0.9, 1.0], [0.646937, 0.167712, 0.185351]),
    ],
)
def test_contrast(alpha: float, expected: list[float], shares: list[float]) -> None:
    close(contrast(LOGITS, BRANCH, alpha), expected)
    cut = torch.where(plausible(LOGITS, 0.1), contrast(LOGITS, BRANCH, alpha), -INF)
    close(cut.softmax(-1), [*shares, 0.0, 0.0])
    log = contrast(LOGITS.log_softmax(-1), BRANCH.log_softmax(-1), alpha)
    close(torch.where(plausible(LOGITS, 0.1), log, -INF).softmax(-1), [*shares, 0.0, 0.0])


def test_banned_tokens_stay_banned() -> None:
    banned, branch = LOGITS.clone(), BRANCH.clone()
    banned[0, 0] = branch[0, 0] = branch[0, 1] = -INF
    mixed = contrast(banned, branch, 1.0)
    assert mixed[0, 0] == -INF
    assert mixed[0, 1] == 2 * 1.0 - branch[0, 2:].min()
    assert not mixed.isnan().any()
    assert finite(branch).isfinite().all()


@pytest.mark.parametrize(
    ("generated", "expected", "shares"),
    [
        (0, [-0.493610, -1.507751, -1.983509], [0.629680, 0.228394, 0.141927]),
        (49, [-0.017006, -2.219803, -0.657865], [0.610749, 0.067484, 0.321767]),
    ],
)
def test_m3id(generated: int, expected: list[float], shares: list[float]) -> None:
    mixed = mutual_information(LOGITS, BRANCH, weight=math.expm1(0.02 * (generated + 1)))
    close(mixed, expected)
    close(torch.where(plausible(LOGITS, 0.1), mixed, -INF).softmax(-1), [*shares, 0.0, 0.0])


def test_lcd() -> None:
    mixed = torch.where(plausible(LOGITS, 0.1), language_contrast(LOGITS, BRANCH, 2.0), -INF)
    close(mixed.log_softmax(-1), [-0.479892, -2.596829, -1.182080])


def test_vcd_noise() -> None:
    shares = signal_shares()
    for step, expected in ((0, 0.999978), (100, 0.996589), (500, 0.744799), (999, 0.081249)):
        assert float(shares[step]) == pytest.approx(expected, abs=1e-6)
    pixels, noise = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, -0.5, 0.25])
    for step, expected_pixels in (
        (500, [0.936683, -1.115604, 1.852328]),
        (999, [1.101036, -0.764300, 0.809714]),
    ):
        torch.testing.assert_close(
            diffuse(pixels, noise, step), torch.tensor(expected_pixels), atol=1e-6, rtol=0
        )


def test_vcd_noise_depends_on_seed_and_pixels_alone() -> None:
    pixels = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    one = add_noise(pixels, 500, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, add_noise(pixels.clone(), 500, 0))
    assert not torch.equal(one, add_noise(pixels, 500, 1))
    assert not torch.equal(one - pixels, add_noise(pixels + 1, 500, 0) - pixels - 1)
    patches = pixels.reshape(4, -1).repeat(1, 2).reshape(4, 3, 1, -1).expand(-1, -1, 2, -1).reshape(4, -1)
    doubled = add_noise(patches, 500, 0, copies=2).view(4, 3, 2, -1)
    assert torch.equal(doubled[:, :, 0], doubled[:, :, 1])


def test_differ() -> None:
    other = LOGITS.clone()
    other[0, 1] += 1e-3
    assert differ(torch.cat([LOGITS] * 3), torch.cat([LOGITS, LOGITS + 2, other])).tolist() == [
        False,
        False,
        True,
    ]


def test_a_formula_against_a_loop() -> None:
    """Random logits, some of them banned by another processor."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = [3 * torch.randn(1, 7, generator=generator) for _ in range(2)]
        logits, branch = rows
        logits[0, 2], branch[0, 4] = -INF, -INF
        alpha, beta = torch.rand(2, generator=generator).tolist()
        smallest = min(float(each) for each in branch[0] if each != -INF)
        expected = []
        for own, other in zip(logits[0].tolist(), branch[0].tolist(), strict=True):
            share = math.exp(own - max(logits[0].tolist()))
            if own == -INF or share < beta:
                expected.append(-INF)
            else:
                expected.append((1 + alpha) * own - alpha * (smallest if other == -INF else other))
        cut = torch.where(plausible(logits, beta), contrast(logits, branch, alpha), -INF)
        torch.testing.assert_close(cut[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def without_image(model: PreTrainedModel) -> Alone:
    return lambda single, new: [text_logits(model, [*text_ids(model, single), *new])]


@in_every_way
def test_branches_equal_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    method = vlmfix.M3ID(decay=0.3, beta=0.001, fused=fused)
    check_branches(model, family, method, inputs, without_image(model), **way)


@in_some_ways
def test_noised_images_equal_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    copies = 2 if "image_grid_thw" in inputs else 1

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        images = split_images({name: each for name, each in single.items() if name in IMAGE_INPUTS})
        noised = [add_noise(image["pixel_values"], 500, 3, copies=copies) for image in images or []]
        return [last_logits(model, answered(single, new) | {"pixel_values": torch.cat(noised)})]

    check_branches(model, family, vlmfix.VCD(beta=0.001, seed=3, fused=fused), inputs, alone, **way)


def test_beams_follow_with_and_without_fusing(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, images_of(family, {"num_beams": 4}))
    outputs = []
    for kwargs, fused in (({}, True), ({}, False), ({"use_cache": False}, True)):
        with vlmfix.VCD(beta=0.001, fused=fused)(model):
            outputs.append(model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=4, **kwargs))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


CONTRASTIVE = ["crops", "flb", "icd", "lcd", "m3id", "ritual", "sid", "vcd", "vdd"]


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_sampling_draws_once_a_row(name: str, family: str, models: dict[str, PreTrainedModel]) -> None:
    """Fused or not the draws are the same, and branches and their noise draw nothing of their own."""
    model = models[family]
    inputs = families.prompt(family, model, (1, 2))

    def sample(context: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        with context:
            tokens = model.generate(**inputs, max_new_tokens=6, do_sample=True, num_return_sequences=2)
        return tokens, torch.get_rng_state()

    stock, state = sample(nullcontext())
    method = acting(name)
    tokens, own_state = sample(method(model, families.PROCESSOR))
    assert torch.equal(own_state, state)
    assert not torch.equal(tokens, stock)
    if name != "flb":
        apart = vlmfix.make_method(name, **method.parameters | {"fused": False})
        other, own_state = sample(apart(model, families.PROCESSOR))
        assert torch.equal(other, tokens)
        assert torch.equal(own_state, state)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_a_sequence_that_ends_leaves_the_others_alone(name: str, llava: PreTrainedModel) -> None:
    kwargs: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    with attached(name, llava):
        for seed in range(20):
            inputs = families.prompt("llava", llava, (1, 2), seed=seed)
            whole = llava.generate(**inputs, **kwargs)[:, inputs["input_ids"].shape[1] :]
            ends = [token for token in whole[1, :4].tolist() if token not in whole[0]]
            if ends:
                break
        ended = llava.generate(**inputs, **kwargs, eos_token_id=ends[0])[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(ended[0], whole[0])
    place = whole[1].tolist().index(ends[0])
    assert torch.equal(ended[1, : place + 1], whole[1, : place + 1])
    assert not ended[1, place + 1 :].any()


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}])
def test_what_a_call_leaves_behind(
    name: str, way: dict[str, Any], models: dict[str, PreTrainedModel]
) -> None:
    """Positions that the model keeps are those of the prompts, and its cache is a plain one."""
    model = models["qwen2_5_vl"]
    inputs = families.prompt("qwen2_5_vl", model, (1, 2))
    kwargs = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, **way}
    stock = read_cache(model.generate(**inputs, **kwargs))
    deltas = model.model.rope_deltas.clone()
    model.model.rope_deltas = None
    with attached(name, model):
        cache = read_cache(model.generate(**inputs, **kwargs))
        assert torch.equal(model.model.rope_deltas, deltas)
        assert type(cache) is type(stock)
        assert vars(cache).keys() == vars(stock).keys()
        assert [layer.keys.shape for layer in cache.layers] == [layer.keys.shape for layer in stock.layers]


def test_with_methods_at_other_levels(model: PreTrainedModel, family: str) -> None:
    """The order of attachment does not matter, and attention edits leave the branch alone."""
    inputs = families.prompt(family, model, (1, 2))
    kwargs = {"max_new_tokens": 6, "do_sample": False}
    with attached("var", model), attached("vhr", model), attached("m3id", model):
        one = model.generate(**inputs, **kwargs)
    with attached("m3id", model), attached("vhr", model), attached("var", model):
        assert torch.equal(model.generate(**inputs, **kwargs), one)
    with attached("m3id", model):
        assert not torch.equal(model.generate(**inputs, **kwargs), one)


def test_only_one_method_says_what_the_logits_are(llava: PreTrainedModel) -> None:
    with (
        pytest.raises(vlmfix.UnsupportedError, match="M3ID defines the logits"),
        vlmfix.M3ID()(llava),
        vlmfix.VCD()(llava),
    ):
        pass


def test_values_out_of_range() -> None:
    for make in (
        lambda: vlmfix.VCD(noise_step=1000),
        lambda: vlmfix.VCD(alpha=-1),
        lambda: vlmfix.M3ID(beta=1.5),
        lambda: vlmfix.M3ID(decay=2),
        lambda: vlmfix.LCD(alpha="much"),
        lambda: vlmfix.FLB(gamma=-0.1),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_flb_adds_the_first_logits(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    kwargs: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    method = vlmfix.FLB(gamma=0.3, decay=0.05, beta=0.0)
    with method(llava):
        output = llava.generate(**inputs, return_dict_in_generate=True, **kwargs)
    ids = output.sequences[:, :-1]
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        stock = llava(**whole).logits[:, -3:].float()
    for step in range(3):
        expected = stock[:, step] + 0.3 * (1 - math.exp(-0.05 * step)) * stock[:, 0]
        torch.testing.assert_close(output.logits[step], expected, atol=1e-5, rtol=1e-5)
