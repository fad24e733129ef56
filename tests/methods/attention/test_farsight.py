"""FarSight: the vectors of its specification, and models with registers in full matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from vlmfix.engine import attention_rows
from vlmfix.engine.layout import PromptLayout
from vlmfix.methods.attention.farsight import _of_rows, decays, gates

ROWS = ([1], [0.5, 1], [0.2, -0.3, 1.1], [0, 0.4, 0.3, 0.8])


def test_vectors() -> None:
    sums = torch.tensor([[math.log(sum(map(math.exp, row))) for row in ROWS]])[:, None, :, None]
    place = torch.arange(4)[None]
    gap, future = torch.zeros_like(place), 3 - place
    for heads, released, expected in (
        (1, False, [[0.785579, 0.870228, 0.917032, 1]]),
        (2, True, [[0.800963, 0.869610, 0.911481, 1], [0.786575, 0.860606, 0.906639, 1]]),
    ):
        decay = decays(place, torch.tensor([[4]]), heads, sigma=0.8, is_released=released)
        kept = gates(sums, decay, gap, future)
        torch.testing.assert_close(kept[0, ..., 0], torch.tensor(expected), atol=1e-6, rtol=0)
    row = torch.tensor(ROWS[1]).softmax(dim=-1) * 0.870228
    torch.testing.assert_close(row, torch.tensor([0.328546, 0.541682]), atol=1e-6, rtol=0)


def test_no_register_weighs_anything_at_strength_zero() -> None:
    place = torch.arange(4)[None]
    decay = decays(place, torch.tensor([[4]]), 2, sigma=1000, is_released=True)
    assert torch.equal(gates(torch.full((1, 2, 4, 1), -30.0), decay, 0 * place, 3 - place), decay * 0 + 1)


def test_registers_stand_after_the_last_token_that_is_seen() -> None:
    seen = torch.ones(4, 4, dtype=torch.bool).tril()[None].clone()
    seen[0, 1, 2] = True
    image = torch.tensor([[False, True, True, False]])
    layout = PromptLayout(image, torch.ones_like(image), seen=seen)
    place, gap, future, real = _of_rows(layout, torch.arange(6))
    assert (place.tolist(), real.tolist()) == ([[0, 1, 2, 3, 4, 5]], [[4]])
    assert (gap.tolist(), future.tolist()) == ([[0, 1, 0, 0, 0, 0]], [[3, 1, 1, 0, 0, 0]])
    decay = torch.full((1, 1, 6, 1), 0.5)
    kept = gates(torch.zeros(1, 1, 6, 1), decay, gap, future)[0, 0, :, 0].tolist()
    assert kept[1] == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert kept[3:] == [1, 1, 1]


def reference(model: PreTrainedModel, inputs: dict[str, Tensor], sigma: float, form: str) -> Tensor:
    """Logits with every register written out."""
    length = inputs["input_ids"].shape[1]
    first = inputs["attention_mask"].argmax(dim=1).tolist()
    image = (inputs["input_ids"] == families.IMAGE_TOKEN).any(dim=1)

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if not image[sample] or not first[sample] <= position < length:
            return None
        place, tokens = position - first[sample], length - first[sample]
        edited = scores.clone()
        for head in range(len(scores)):
            decay = sigma
            if form == "released":
                decay = sigma * (1 - place / (4 * (tokens - 1))) + 2 ** (-8 * (head + 1) / len(scores))
            for key in range(position + 1, length):
                edited[head, key] = -(key - position) * decay
        return edited.softmax(dim=-1).masked_fill(scores == -torch.inf, 0.0)

    with full_matrices(model, edit):
        return step_logits(model, inputs)


@pytest.mark.parametrize(("family", "form"), [("llava", "released"), ("qwen3_vl", "paper")])
def test_model_against_registers_in_full_matrices(
    family: str, form: str, models: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    expected = reference(model, inputs, 0.3, form)
    monkeypatch.setattr(attention_rows, "_BLOCK", 2000)
    method = vlmfix.FarSight(sigma=0.3, form=form)
    with method(model):
        found = step_logits(model, inputs)
        without_cache = step_logits(model, inputs | {"use_cache": False})
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(without_cache, expected, atol=2e-5, rtol=1e-4)
    stats = method.edit_stats()
    assert stats.size is not None
    assert 0.01 < stats.size < 0.9
    assert stats.layers_edited == list(range(families.LAYERS))


def test_beside_a_method_that_reads_the_last_row_again(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    found = []
    for cache in (True, False):
        with vlmfix.FarSight(sigma=0.3)(llava), vlmfix.PAI(alpha=1.0)(llava):
            found.append(step_logits(llava, inputs | {"use_cache": cache}))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_registers_that_weigh_nothing_are_a_reason(llava: PreTrainedModel) -> None:
    warns = pytest.warns(
        vlmfix.InactiveMethodWarning, match="registers weigh too little to tell at sigma=900"
    )
    with warns, vlmfix.FarSight(sigma=900)(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigma": 0}, "sigma is 0; it must be a number from 0.01 to 1000"),
        ({"form": "code"}, "form is 'code'"),
        ({"gate": "always:1"}, "what FarSight does is something else; leave out gate='always:1'"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.FarSight(**parameters)
