"""VAF: the vector of its specification, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from tests.support.spec_rows import IMAGE, SCORES, SYSTEM
from vlmfix.methods.attention.vaf import column_factors

EXPECTED = torch.tensor(
    [
        [0.353767, 0.085084, 0.167108, 0.016754, 0.052912, 0.087238, 0.237137],
        [0.149845, 0.036039, 0.005810, 0.091799, 0.230350, 0.428205, 0.057951],
    ]
)


def test_vector() -> None:
    factors = column_factors(IMAGE, SYSTEM, enhance=1.15, suppress=0.95)
    torch.testing.assert_close(factors, torch.tensor([[0.95, 0.95, 1.15, 1.15, 1.15, 1, 1]]))
    weights = (SCORES * factors).softmax(dim=-1)
    torch.testing.assert_close(weights[0, :, 0], EXPECTED, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize(("layers", "edited"), [(None, (1,)), ((1, 5), range(1, 5))])
def test_model_against_naive_full_matrices(
    family: str, layers: Any, edited: Any, models: dict[str, PreTrainedModel]
) -> None:
    """Rows after the last image and new ones are edited; 9 to 14 of 32 layers are 1 of 5.

    In the sample with two images, the text between them is neither amplified nor weakened.
    """
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    real = inputs["attention_mask"].bool()

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        places = image[sample].nonzero().flatten().tolist()
        if layer not in edited or not places or position <= places[-1]:
            return None
        for key in range(places[-1] + 1):
            if key in places:
                scores[:, key] *= 1.8
            elif key < places[0] and real[sample, key]:
                scores[:, key] *= 0.6
        return scores.softmax(dim=-1)

    with full_matrices(model, edit):
        expected = step_logits(model, inputs)
    with vlmfix.VAF(enhance=1.8, suppress=0.6, layers=layers)(model):
        found = step_logits(model, inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (found - step_logits(model, inputs))[:, [0, 2]].abs().amax(dim=(0, 2)).min() > 1e-3


def test_either_factor_alone_acts(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    stock = step_logits(llava, inputs)
    for factors in ({"enhance": 1, "suppress": 0.5}, {"enhance": 2, "suppress": 1}):
        method = vlmfix.VAF(**factors)
        assert not method.is_identity
        with method(llava):
            assert not torch.equal(step_logits(llava, inputs), stock)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"enhance": 0}, "enhance is 0; it must be above 0"),
        ({"suppress": 0.0}, "suppress is 0; it must be above 0"),
        ({"suppress": -0.5}, "suppress is -0.5; it must be a number from 0 to 100"),
        ({"enhance": 101}, "enhance is 101"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.VAF(**parameters)
