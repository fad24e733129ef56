"""AdaVBoost: the vectors of its specification, and models with naive full matrices."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices
from tests.support.methods import values
from vlmfix.methods.attention.adavboost import boost, risk
from vlmfix.methods.logits.image_states import grounding

STATES = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 3.0]]])


def test_risk_vectors() -> None:
    grounded = grounding(lambda x: x, STATES, torch.ones(1, 2, dtype=torch.bool))
    expected = torch.tensor([[0.711235, 0.109591, 0.096255, 0.809776]])
    torch.testing.assert_close(grounded, expected, atol=1e-6, rtol=0)
    for logits, vge, clipped in (
        ([1.0, 2.0, 0.5, 0.0], 0.845468, 1.0),
        ([6.0, 2.0, 0.5, 0.0], 0.192173, 0.384347),
    ):
        for scale, value in ((1.0, vge), (0.5, clipped)):
            found = risk(torch.tensor([logits]), grounded, mix=0.5, scale=scale)
            torch.testing.assert_close(found, torch.tensor([value]), atol=1e-6, rtol=0)


def test_scores_vector() -> None:
    scores = torch.tensor([1.0, 0.4, -0.2, 0.3, 0.8])[None, None, None]
    image = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0])[None, None, None]
    text = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])[None, None, None]
    edited = boost(scores, torch.tensor([[0.384347]]), image, text, image_max=1.1, text_max=1.7)
    expected = torch.tensor([0.238620, 0.200740, 0.107657, 0.158081, 0.294901])
    torch.testing.assert_close(edited.softmax(dim=-1)[0, 0, 0], expected, atol=1e-6, rtol=0)
    same = boost(scores, torch.zeros(1, 1), image, text, image_max=1.1, text_max=1.7)
    assert torch.equal(same, scores)


@torch.no_grad()
def reference(
    model: PreTrainedModel, method: vlmfix.AdaVBoost, single: dict[str, Tensor], new: list[int]
) -> Tensor:
    """Logits of a prompt and its answer so far: every row under the risk of its own token, as read before."""
    ids = single["input_ids"][0]
    image, length = ids == families.IMAGE_TOKEN, len(ids)
    risks: list[float] = []

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if position < length or layer not in (0, 1):
            return None
        more = (method.image_max - 1) * risks[position - length]
        for key in range(length) if more > 1e-6 else ():
            scores[:, key] *= 1 + more if image[key] else 1 / method.text_max
        return scores.softmax(dim=-1)

    with full_matrices(model, edit):
        for count in range(len(new) + 1):
            said = families.continued(single, new[:count])
            logits = model(**said, use_cache=False).logits[0].float()
            grounded = logits[:length][image].softmax(dim=-1).amax(dim=0) if image.any() else 0 * logits[0]
            found = risk(logits[-1:], grounded[None], mix=method.mix, scale=method.risk_scale)
            risks.append(float(found) if image.any() else 0.0)
    return logits[-1]


STRONG: dict[str, Any] = {"image_max": 8.0, "text_max": 2.0, "risk_scale": 1.0, "layers": (0, 2)}


@pytest.mark.parametrize("mix", [0.5, 1.0])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_model_against_naive_full_matrices(
    mix: float, family: str, models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    method = vlmfix.AdaVBoost(**STRONG, mix=mix)
    with method(model):
        found = values(model, inputs, max_new_tokens=4)
    for row, single in enumerate(families.split(family, model, inputs)):
        new: list[int] = []
        for logits in found[:, row]:
            expected = reference(model, method, single, new)
            torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-4)
            new.append(int(logits.argmax()))
    stock = values(model, inputs, max_new_tokens=4)
    assert torch.equal(found[0], stock[0])  # no risk is known yet
    assert (found[1:] - stock[1:])[:, [0, 2]].abs().max() > 1e-3
    assert 0 < method.edit_stats().details["risk"] < 1


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}], ids=["cache", "no cache"])
def test_risks_follow_beams(kwargs: dict[str, Any], llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 1))
    method = vlmfix.AdaVBoost(**STRONG)
    tokens: list[Tensor] = []
    seen: list[Tensor] = []

    class Watched(vlmfix.AdaVBoost):
        def see_logits(self, context: Any, logits: Tensor) -> None:
            super().see_logits(context, logits)
            seen.append(logits.clone())

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        tokens.append(ids.clone())
        return scores

    with Watched(**STRONG)(llava):
        llava.generate(
            **inputs, max_new_tokens=5, do_sample=False, num_beams=3, logits_processor=[note], **kwargs
        )
    singles = families.split("llava", llava, inputs)
    for ids, logits in zip(tokens, seen, strict=True):
        for row in range(6):
            new = ids[row, inputs["input_ids"].shape[1] :].tolist()
            expected = reference(llava, method, singles[row // 3], new)
            torch.testing.assert_close(logits[row], expected, atol=5e-5, rtol=1e-4)
    assert any(not torch.equal(after[:, :-1], before) for before, after in itertools.pairwise(tokens))


def test_without_a_cache_beside_a_method_that_edits_the_prompt(llava: PreTrainedModel) -> None:
    """Rows of the prompt, which the other method asks for, keep their scores."""
    inputs = families.prompt("llava", llava, (1, 2))
    found = []
    for cache in (True, False):
        with vlmfix.VAF(enhance=2.0, layers=(0, 3))(llava), vlmfix.AdaVBoost(**STRONG)(llava):
            found.append(values(llava, inputs, max_new_tokens=4, use_cache=cache))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_one_token_alone_is_a_reason(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="it acts from the second new token on")
    with warns, vlmfix.AdaVBoost()(llava):
        llava.generate(**inputs, max_new_tokens=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"image_max": 0.9}, "image_max is 0.9; it must be a number from 1 to 100"),
        ({"text_max": 0.9}, "text_max is 0.9; it must be a number from 1 to 100"),
        ({"mix": 1.1}, "mix is 1.1; it must be a number from 0 to 1"),
        ({"risk_scale": 0}, "risk_scale is 0; it must be a number from 0.01 to 1"),
        ({"layers": 3}, "layers is 3"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.AdaVBoost(**parameters)
