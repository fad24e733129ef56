"""Controls: their formulas on worked examples, what they do to a model, and what acts from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families, layer_reference
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.methods.baselines.output_shift import (
    answer_ids,
    answer_margins,
    calibrate_shift,
    forced,
    shifted,
)
from vlmfix.methods.baselines.plausibility import candidates
from vlmfix.methods.grammar import make_methods, parse_settings
from vlmfix.methods.logits.base import contrast, plausible
from vlmfix.methods.multi_pass import MultiPassMethod

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
ANSWER = torch.tensor([[1.0, 1.4, 0.2, -2.0]])
YES, NO = torch.tensor([0]), torch.tensor([1])
OUTSIDE = [
    cls for cls in vlmfix.list_methods().values() if not cls.attaches and not issubclass(cls, MultiPassMethod)
]
QUESTION = "Is there a dog in the image?"
PICTURES = [render(sample_scene(3, index)) for index in range(4)]


def close(got: Tensor, expected: list[float], atol: float = 1e-6) -> None:
    torch.testing.assert_close(got[0, : len(expected)], torch.tensor(expected), atol=atol, rtol=0)


def first_logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    output = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return layer_reference.released(output.logits[0])


def test_plausibility_and_sharpening() -> None:
    cut = plausible(LOGITS, 0.1)
    for c, shares in ((1.0, [0.628532, 0.231224, 0.140244]), (4.0, [0.979629, 0.017943, 0.002428])):
        kept = torch.where(cut, c * LOGITS, -torch.inf)
        close(kept.softmax(-1), [*shares, 0.0, 0.0])
    assert float(LOGITS.softmax(-1)[~cut].sum()) == pytest.approx(0.034309, abs=1e-6)


def test_candidates() -> None:
    assert candidates(LOGITS, top_p=0.9, top_k=20).tolist() == [[True, True, True, False, False]]
    assert candidates(LOGITS, top_p=0.9, top_k=2).tolist() == [[True, True, False, False, False]]
    assert candidates(LOGITS, top_p=0.0, top_k=0).sum() == 1
    assert candidates(LOGITS, top_p=1.0, top_k=0).all()


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 20), (0.5, 0), (1.0, 7), (0.999, 1000)])
def test_candidates_equal_those_found_one_by_one(top_p: float, top_k: int) -> None:
    logits = 2 * torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    found = candidates(logits, top_p=top_p, top_k=top_k)
    for row, kept in zip(logits, found, strict=True):
        total, wanted = 0.0, set()
        for token in sorted(range(40), key=lambda token: -float(row[token])):
            if total >= top_p or len(wanted) == (top_k or 40):
                break
            wanted.add(token)
            total += float(row.softmax(0)[token])
        assert set(kept.nonzero().flatten().tolist()) == wanted


def test_shift_turns_the_answer() -> None:
    close(ANSWER.softmax(-1), [0.334343, 0.498781, 0.150230, 0.016646])
    edited = shifted(ANSWER, YES, NO, 0.6)
    close(edited, [1.3, 1.1, 0.2, -2.0])
    close(edited.softmax(-1), [0.456937, 0.374108, 0.152101, 0.016853])
    assert (ANSWER.argmax(), edited.argmax()) == (1, 0)


def test_band_forces_yes_where_the_model_wavers() -> None:
    shares = ANSWER.softmax(-1)[0]
    assert float(shares[0] + shares[1]) == pytest.approx(0.833124, abs=1e-6)
    assert float(shares[1] - shares[0]) == pytest.approx(0.164438, abs=1e-6)
    edited = layer_reference.released(forced(ANSWER, YES, NO, mass=0.2, margin=0.5))
    assert edited.isfinite().tolist() == [[True, False, False, False]]
    assert edited[0, 0] == ANSWER[0, 0]
    for mass, margin in ((0.84, 0.5), (0.2, 0.16)):
        assert torch.equal(forced(ANSWER, YES, NO, mass=mass, margin=margin), ANSWER)
    several = torch.tensor([2, 0])
    edited = layer_reference.released(forced(ANSWER, several, NO, mass=0.2, margin=0.5))
    assert edited.isfinite().nonzero().tolist() == [[0, 0]]


def test_shift_equals_one_number_after_the_other() -> None:
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    yes, no = torch.tensor([3, 7]), torch.tensor([0])
    edited = shifted(logits, yes, no, 1.5)
    for row in range(4):
        for token in range(12):
            offset = 0.75 if token in (3, 7) else -0.75 if token == 0 else 0.0
            assert float(edited[row, token]) == pytest.approx(float(logits[row, token]) + offset)
    margins = answer_margins(logits, (3, 7), (0,))
    torch.testing.assert_close(answer_margins(edited, (3, 7), (0,)), margins + 1.5)
    shares = logits.softmax(-1)
    torch.testing.assert_close(margins, ((shares[:, 3] + shares[:, 7]) / shares[:, 0]).log())


@pytest.mark.parametrize(("target", "delta"), [(4 / 6, 0.25), (0, -3.0), (1, 2.2)])
def test_calibration(target: float, delta: float) -> None:
    margins = [-1.2, -0.4, -0.1, 0.3, 0.9, 2.0]
    found = calibrate_shift(margins, target)
    assert found == pytest.approx(delta)
    assert calibrate_shift(margins[::-1], target) == found
    assert sum(margin + found > 0 for margin in margins) == round(6 * target)


def test_calibration_needs_margins_and_a_share() -> None:
    with pytest.raises(ValueError, match="margins is empty"):
        calibrate_shift([], 0.5)
    with pytest.raises(ValueError, match=r"target is 1\.5; it must be a number from 0 to 1"):
        calibrate_shift([0.0], 1.5)


def test_words_of_the_tokenizer(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1].tokenizer
    found = [{tokenizer.decode([id]) for id in ids} for ids in answer_ids(tokenizer)]
    assert found == [{"Yes", " Yes", " yes"}, {"No", "no", " No", " no"}]  # "yes" is two tokens here
    with pytest.raises(vlmfix.UnsupportedError, match=r"no single token of .* says yes; pass yes_ids"):
        answer_ids(families.PROCESSOR.tokenizer)


def test_output_shift_needs_to_know_the_words(llava: PreTrainedModel) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="needs the processor"):
        vlmfix.BaselineOutputShift()(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "answers"),
    [({"delta": 200.0}, {"Yes"}), ({"delta": -200.0}, {"No"}), ({"form": "band", "margin": 1.0}, {"Yes"})],
)
def test_output_shift_on_a_model(
    parameters: dict[str, Any], answers: set[str], loaded: tuple[Any, Any]
) -> None:
    method = vlmfix.BaselineOutputShift(**parameters)
    said = vlmfix.generate(*loaded, PICTURES, QUESTION, method, max_new_tokens=1)
    assert set(said) == answers
    edit_stats = method.edit_stats()
    assert (edit_stats.rows_touched, edit_stats.rows_skipped) == (4, {})
    assert (edit_stats.kl_cut is None) == ("delta" in parameters)  # which rules nothing out


@pytest.mark.parametrize("parameters", [{"beta": 0.3}, {"beta": 0, "top_p": 0.9, "top_k": 20}])
def test_plausibility_leaves_greedy_tokens(parameters: dict[str, Any], loaded: tuple[Any, Any]) -> None:
    method = vlmfix.BaselinePlausibility(**parameters)
    asked = (*loaded, [*PICTURES, None], "Describe the image.")
    assert vlmfix.generate(*asked, method, max_new_tokens=12) == vlmfix.generate(*asked, max_new_tokens=12)
    edit_stats = method.edit_stats()
    assert edit_stats.argmax_changed == 0
    assert edit_stats.kl_mean == pytest.approx(edit_stats.kl_cut, rel=1e-3)  # there is nothing but the cut
    assert 0 < edit_stats.size < 0.5
    assert edit_stats.details["size"] == "probability of the tokens that are ruled out"


def test_sharpening_is_another_temperature(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 0))
    stock = first_logits(llava, inputs)
    with vlmfix.BaselineSharpen(c=2.5, beta=0.2)(llava):
        edited = first_logits(llava, inputs)
    kept = plausible(stock, 0.2)
    assert torch.equal(edited.isfinite(), kept)
    torch.testing.assert_close(edited[kept], 2.5 * stock[kept])


def test_text_contrast_equals_two_readings(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    stock = first_logits(llava, inputs)
    text = inputs["input_ids"][inputs["input_ids"] != families.IMAGE_TOKEN][None]
    with torch.no_grad():
        bare = llava(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -1].float()
    with vlmfix.BaselineTextContrast(alpha=0.7, beta=0.2)(llava):
        edited = first_logits(llava, inputs)
    wanted = torch.where(plausible(stock, 0.2), contrast(stock, bare, 0.7), -torch.inf)
    torch.testing.assert_close(edited, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cls", OUTSIDE, ids=lambda cls: cls.name)
def test_what_acts_from_outside_refuses_to_be_attached(cls: Any, llava: PreTrainedModel) -> None:
    hint = {
        "baseline.greedy": "pass num_beams=1, do_sample=False to model.generate, or use vlmfix.generate",
        "baseline.sample": "pass num_beams=1, do_sample=True, temperature=1.0, top_p=1.0, top_k=0 to model",
        "baseline.beam": "pass num_beams=5, do_sample=False to model.generate",
        "baseline.prompt_bias": "append 'Answer yes whenever possible.' to the prompt",
        "baseline.resize": "give the processor smaller pictures, with a lower bound of its size, or use",
    }[cls.name]
    before = dict(vars(llava))
    with pytest.raises(vlmfix.UnsupportedError, match=hint):
        cls()(llava).__enter__()
    assert vars(llava) == before
    assert cls().edit_stats().rows == 0


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("baseline.greedy", {"do_sample": False}),
        ("baseline.beam", {"do_sample": False, "num_beams": 5}),
        (vlmfix.BaselineBeam(num_beams=2), {"do_sample": False, "num_beams": 2}),
        ("baseline.sample", {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}),
    ],
    ids=str,
)
def test_stock_decoding_whatever_was_asked_for(
    method: Any, settings: dict[str, Any], loaded: tuple[Any, Any]
) -> None:
    answers = []
    for applied, kwargs in ((None, settings), (method, {"num_beams": 3}), (method, {"temperature": 0.01})):
        torch.manual_seed(1)
        answers.append(
            vlmfix.generate(*loaded, PICTURES, "Describe the image.", applied, max_new_tokens=12, **kwargs)
        )
    assert answers[0] == answers[1] == answers[2]


def test_a_biased_question(loaded: tuple[Any, Any]) -> None:
    for direction in ("yes", "no"):
        method = vlmfix.BaselinePromptBias(direction=direction)
        asked = f"{QUESTION} Answer {direction} whenever possible."
        assert method.prompt(QUESTION) == asked
        assert method.prompt_change == f"bias-{direction}"
        assert vlmfix.generate(*loaded, PICTURES, QUESTION, method, max_new_tokens=4) == vlmfix.generate(
            *loaded, PICTURES, asked, max_new_tokens=4
        )


def test_controls_and_methods_together(loaded: tuple[Any, Any]) -> None:
    settings = {"do_sample": False, "num_beams": 2}
    steered = vlmfix.generate(*loaded, PICTURES, QUESTION, "vhr", max_new_tokens=8, **settings)
    both = ["vhr", vlmfix.BaselineBeam(num_beams=2)]
    assert vlmfix.generate(*loaded, PICTURES, QUESTION, both, max_new_tokens=8) == steered


def test_controls_are_a_group_of_their_own() -> None:
    names = list(vlmfix.list_methods())
    controls = [name for name in names if name.startswith("baseline.")]
    assert names[-len(controls) :] == controls == sorted(controls)
    assert {vlmfix.list_methods()[name].info.stage for name in controls} == {"baseline"}
    assert {cls.info.stage for cls in vlmfix.list_methods().values() if cls.name not in controls} & {
        "baseline"
    } == set()
    for name in controls:
        assert type(vlmfix.make_method(name)).name == name


def test_names_with_a_dot_take_settings() -> None:
    [alone] = parse_settings(["baseline.sharpen"], ["c=2", "baseline.sharpen.beta=0.3"])
    assert make_methods(alone) == [vlmfix.BaselineSharpen(c=2, beta=0.3)]
    [both] = parse_settings(["var+baseline.sharpen"], ["baseline.sharpen.c=2", "var.moved_fraction=0.1"])
    assert make_methods(both) == [vlmfix.VAR(moved_fraction=0.1), vlmfix.BaselineSharpen(c=2)]
    with pytest.raises(
        ValueError, match=r"unknown method 'baseline.greed' \(did you mean 'baseline.greedy'\?\)"
    ):
        vlmfix.make_method("baseline.greed")


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (vlmfix.BaselineBeam, {"num_beams": 0}, "num_beams is 0; it must be a whole number from 1 on"),
        (vlmfix.BaselinePromptBias, {"direction": "maybe"}, "direction is 'maybe'; it must be one of 'yes'"),
        (vlmfix.BaselinePlausibility, {"top_k": -1}, "top_k is -1; it must be a whole number from 0 on"),
        (vlmfix.BaselinePlausibility, {"top_p": 1.1}, "top_p is 1.1"),
        (vlmfix.BaselineSharpen, {"c": 0}, "c is 0; it must be above 0"),
        (vlmfix.BaselineOutputShift, {"form": "other"}, "form is 'other'"),
        (vlmfix.BaselineOutputShift, {"mass": 2}, "mass is 2; it must be a number from 0 to 1"),
        (vlmfix.BaselineOutputShift, {"yes_ids": ()}, r"yes_ids is \(\); it must hold token ids"),
        (vlmfix.BaselineOutputShift, {"yes_ids": [1, 2], "no_ids": 2}, r"share \[2\]; a token begins one"),
        (vlmfix.BaselineTextContrast, {"alpha": -1}, "alpha is -1"),
    ],
)
def test_values_out_of_range(cls: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**parameters)
