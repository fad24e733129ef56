"""VISTA: the vectors of its specification, and a model with the same edit by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import text_ids
from tests.support.methods import values
from tests.support.stream_reference import Edit, answers, each_from, seen
from vlmfix import VISTA
from vlmfix.methods.steering.base import steer
from vlmfix.methods.steering.vista import difference, steering_shift
from vlmfix.models.structure import text_decoder


@pytest.mark.parametrize(
    ("vector", "wanted"),
    [([-1.0, 1.0, 0.0], [2.321120, 0.926777, 4.330530]), ([1.0, 1.0, 0.0], [3.324691, 0.554916, 3.693034])],
)
def test_vectors(vector: list[float], wanted: list[float]) -> None:
    states = torch.tensor([3.0, 0.0, 4.0])
    shift = steering_shift(states, torch.tensor(vector), strength=0.17)
    found = steer(states, shift)
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-6, rtol=0)
    assert float(found.norm()) == pytest.approx(5, abs=1e-6)
    weight = 1.424264 if vector[0] < 0 else 1.0
    assert float(shift.norm()) == pytest.approx(0.17 * weight, abs=1e-6)
    torch.testing.assert_close(steer(states, steering_shift(states, torch.zeros(3), strength=0.17)), states)


@pytest.mark.parametrize(
    ("family", "settings", "layers"),
    [
        ("llava", {"strength": 0.4}, range(5)),
        ("qwen2_5_vl", {"strength": 0.4, "layers": (1, 3)}, (1, 2)),
    ],
    ids=str,
)
def test_model_against_the_edit_by_hand(
    family: str, settings: dict[str, Any], layers: Any, models: dict[str, PreTrainedModel]
) -> None:
    """Every row, each sample by the vector of its own prompt."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 1))
    decoder = text_decoder(model)

    def edits_of(single: dict[str, Tensor]) -> Mapping[nn.Module, Edit]:
        ids = torch.tensor([text_ids(model, single)])
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in single:
            text["mm_token_type_ids"] = torch.zeros_like(ids)
        return {
            decoder.layers[index].mlp: edit_towards(
                seen(model, single, decoder.layers[index])[1][-1]
                - seen(model, text, decoder.layers[index])[1][-1]
            )
            for index in layers
        }

    def edit_towards(vector: Tensor) -> Edit:
        def edit(state: Tensor) -> Tensor:
            cosine = float(state @ -vector / state.norm() / vector.norm())
            turned = state / state.norm() + 0.4 * (1 + max(0, cosine)) * vector / vector.norm()
            return turned / turned.norm() * state.norm()

        return each_from(0, edit)

    method = VISTA(**settings)
    with method(model, families.PROCESSOR):
        found = values(model, inputs, max_new_tokens=3)
    torch.testing.assert_close(found, answers(model, family, inputs, edits_of), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, values(model, inputs, max_new_tokens=3), atol=1e-2)
    stats = method.edit_stats()
    assert stats.layers_edited == list(layers)
    assert stats.size is not None
    assert 10 < stats.size < 40  # degrees: atan(0.4) is 22


def test_a_prompt_without_an_image_is_left_as_it_is(models: dict[str, PreTrainedModel]) -> None:
    model = models["llava"]
    inputs = families.prompt("llava", model, (0, 0))
    stock = values(model, inputs, max_new_tokens=2)
    with (
        pytest.warns(vlmfix.InactiveMethodWarning, match="no image in the prompt"),
        VISTA(strength=1.0)(model, families.PROCESSOR),
    ):
        assert torch.equal(values(model, inputs, max_new_tokens=2), stock)


def test_values_out_of_range_are_refused(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match="strength is -1; it must be a number from 0 to 10"):
        VISTA(strength=-1)
    with pytest.raises(ValueError, match=r"layers is \(2, 7\), first and after the last"):
        VISTA(layers=(2, 7))(models["llava"]).__enter__()


def test_rounding_is_no_direction() -> None:
    shown = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    hidden = shown + torch.tensor([[2e-5, 0.0], [2e-4, 0.0]])
    found = difference(shown, hidden)
    assert found[0].tolist() == [0, 0]
    torch.testing.assert_close(found[1], torch.tensor([-2e-4, 0.0]), atol=1e-6, rtol=0)
