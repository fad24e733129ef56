"""Contrastive decoding: the formulas on worked examples, branches against brute force, refusals."""

from __future__ import annotations

import math
from typing import Any

import families
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from vlmfix.methods.contrast import contrast, differ, finite, plausible
from vlmfix.methods.lcd import language_contrast
from vlmfix.methods.m3id import mutual_information
from vlmfix.methods.vcd import add_noise, diffuse, signal_shares

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
BRANCH = torch.tensor([[1.5, 1.2, -0.5, -1.0, 0.0]])
INF = torch.inf


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
    gated = mutual_information(LOGITS, BRANCH, weight=1.0, gate=0.3)
    close(gated, LOGITS.log_softmax(-1)[0].tolist())
    assert torch.equal(
        mutual_information(LOGITS, BRANCH, weight=1.0, gate=0.9),
        mutual_information(LOGITS, BRANCH, weight=1.0),
    )


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


def brute_force(model: PreTrainedModel, family: str, inputs: dict[str, Tensor], decay: float) -> list[Any]:
    """M3ID by two passes without a cache for every token, each prompt alone."""
    answers = []
    for single in families.split(family, model, inputs):
        new: list[int] = []
        for step in range(6):
            whole = families.continued(single, new)
            ids = whole["input_ids"]
            text = model.get_input_embeddings()(ids[ids != families.IMAGE_TOKEN][None])
            with torch.no_grad():
                logits = model(**whole).logits[:, -1].float()
                states = model.get_decoder()(inputs_embeds=text, use_cache=False).last_hidden_state
                branch = model.get_output_embeddings()(states[:, -1]).float()
            mixed = mutual_information(logits, branch, weight=math.expm1(decay * (step + 1)))
            new.append(int(torch.where(plausible(logits, 0.001), mixed, -INF).argmax()))
        answers.append(new)
    return answers


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}], ids=["cache", "no cache"])
@pytest.mark.parametrize("fused", [True, False])
def test_branches_equal_brute_force(
    model: PreTrainedModel, family: str, kwargs: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, (1, 2))
    with vlmfix.M3ID(decay=0.3, beta=0.001, fused=fused)(model):
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False, **kwargs)
    assert output[:, inputs["input_ids"].shape[1] :].tolist() == brute_force(model, family, inputs, 0.3)


def test_beams_follow_with_and_without_fusing(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 2))
    outputs = []
    for kwargs, fused in (({}, True), ({}, False), ({"use_cache": False}, True)):
        with vlmfix.VCD(beta=0.001, fused=fused)(model):
            outputs.append(model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=4, **kwargs))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_with_methods_at_other_levels(model: PreTrainedModel, family: str) -> None:
    """The order of attachment does not matter, and attention edits leave the branch alone."""
    from conftest import attached

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
        lambda: vlmfix.M3ID(gate=2),
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
