"""Visual entropy: the vectors of its specification, and answers worked out without a cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import values
from vlmfix.methods.logits import image_states
from vlmfix.methods.logits.image_states import grounding, position_entropy
from vlmfix.methods.logits.visual_entropy import lower

SCORES = torch.tensor([[[4.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, -2.0]]])
FLATNESS = torch.tensor([[0.161407, 1.0, 1.0, 0.401468]])


def test_flatness_vector() -> None:
    known = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(position_entropy(lambda x: x, SCORES, known), FLATNESS, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1.0, 2.0, 1.6, 0.5], [0.878945, 1.25, 0.85, 0.198899]),
        ([1.8, 2.0, 1.6, 0.5], [1.678945, 1.25, 0.85, 0.198899]),
        ([2.0, 1.5, 1.0, 0.5], [2.0, 1.5, 1.0, 0.5]),
    ],
)
def test_step_vectors(logits: list[float], expected: list[float]) -> None:
    found, acts = lower(torch.tensor([logits]), FLATNESS, alpha=0.75, gamma=0.5)
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)
    assert bool(acts) == (logits != expected)


def test_without_a_bound_every_row_is_edited_and_banned_tokens_stay() -> None:
    found, acts = lower(torch.tensor([[2.0, -torch.inf, 1.0, 0.5]]), FLATNESS, alpha=1.0, gamma=None)
    assert bool(acts)
    torch.testing.assert_close(found, torch.tensor([[1.838593, -torch.inf, 0.0, 0.098532]]))


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_maps_against_loops(block: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of any size, of any number of tokens, far beyond what exp can hold."""
    vocabulary, counts = 5, [6, 1, 0, 3]
    monkeypatch.setattr(image_states, "_BLOCK", block * vocabulary * len(counts))
    generator = torch.Generator().manual_seed(0)
    scores = scale * torch.randn(len(counts), 6, vocabulary, generator=generator)
    known = torch.tensor([[place >= 6 - count for place in range(6)] for count in counts])
    flat, best = position_entropy(lambda x: x, scores, known), grounding(lambda x: x, scores, known)
    for row, count in enumerate(counts):
        own = scores[row, 6 - count :].double()
        for token in range(vocabulary):
            shares = own[:, token].softmax(dim=0).tolist()
            entropy = -sum(share * math.log(share) for share in shares if share > 0)
            expected = entropy / math.log(count) if count > 1 else float(count)
            assert float(flat[row, token]) == pytest.approx(expected, abs=1e-5)
            likely = [float(place.softmax(dim=0)[token]) for place in own]
            assert float(best[row, token]) == pytest.approx(max(likely, default=0.0), abs=1e-5)


@torch.no_grad()
def answer(
    model: PreTrainedModel, single: dict[str, Tensor], method: vlmfix.VisualEntropy, steps: int
) -> list[Tensor]:
    """Logits of the steps of an answer, without a cache, and with the whole map at once."""
    new: list[int] = []
    logits: list[Tensor] = []
    for _ in range(steps):
        scores = model(**families.continued(single, new), use_cache=False).logits[0].float()
        own = scores[-1]
        of_image = scores[: single["input_ids"].shape[1]][single["input_ids"][0] == families.IMAGE_TOKEN]
        if len(of_image) > 1:
            shares = of_image.double().softmax(dim=0)
            flatness = -(shares * shares.log()).sum(dim=0) / math.log(len(of_image))
            if flatness[own.argmax()] > (method.gamma or 0.0):
                own = (own.double() - method.alpha * flatness).float()
        logits.append(own)
        new.append(int(own.argmax()))
    return logits


@pytest.mark.parametrize("parameters", [{"alpha": 30.0, "gamma": 0.9}, {"alpha": 50.0, "gamma": None}])
def test_against_brute_force(parameters: dict[str, Any], model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (2, 1, 0))
    method = vlmfix.VisualEntropy(**parameters)
    with method(model):
        found = values(model, inputs, max_new_tokens=5)
    for row, single in enumerate(families.split(family, model, inputs)):
        expected = torch.stack(answer(model, single, method, 5))
        torch.testing.assert_close(found[:, row], expected, atol=2e-4, rtol=1e-4)
    size = method.edit_stats().size
    assert size is not None
    assert size > 0


def test_a_prompt_with_one_image_token_left_is_left_as_it_is(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="fewer than two image tokens")
    with vlmfix.RandomTokens(kept_tokens=1)(llava):
        stock = values(llava, inputs, max_new_tokens=3)
        with warns, vlmfix.VisualEntropy(gamma=None)(llava):
            assert torch.equal(values(llava, inputs, max_new_tokens=3), stock)


def test_image_tokens_that_a_pruning_leaves(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    with vlmfix.RandomTokens(kept_tokens=3)(llava):
        stock = values(llava, inputs, max_new_tokens=2)
        with vlmfix.VisualEntropy(gamma=None, alpha=20.0)(llava):
            found = values(llava, inputs, max_new_tokens=2)
    lowered = stock[0] - found[0]
    assert (lowered > 0).any()
    assert (lowered <= 20.0 + 1e-4).all()


def test_a_model_that_caps_its_logits_is_refused(llava: PreTrainedModel) -> None:
    def capped(module: Any, args: Any, output: Any) -> Any:
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    inputs = families.prompt("llava", llava, (1,))
    handle = llava.register_forward_hook(capped)
    refuses = pytest.raises(vlmfix.UnsupportedError, match="caps or scales what its output head gives")
    try:
        with vlmfix.VisualEntropy()(llava), refuses:
            llava.generate(**inputs, max_new_tokens=1)
    finally:
        handle.remove()


def test_a_model_without_an_output_head_is_refused(
    llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(llava), "get_output_embeddings", lambda _: None)
    with pytest.raises(vlmfix.UnsupportedError, match="does not say what turns hidden states into logits"):
        vlmfix.VisualEntropy()(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be a number from 0 to 100"),
        ({"gamma": 1.5}, "gamma is 1.5; it must be a number from 0 to 1"),
        ({"beta": 2}, "beta is 2"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.VisualEntropy(**parameters)
