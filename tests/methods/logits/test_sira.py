"""SIRA: the vector of its specification, and its branch read alone, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    Inputs,
    answered,
    check_branches,
    images_of,
    in_some_ways,
    last_logits,
    selected_logits,
)
from tests.support.methods import values
from vlmfix.methods.logits.base import contrast


def test_vector() -> None:
    full = torch.tensor([[2.0, 1.8, 0.5], [1.0, 0.5, -0.5]])
    without = torch.tensor([[1.0, 2.2, 0.4], [1.0, 0.5, -0.5]])
    expected = torch.tensor([[2.5, 1.6, 0.55], [1.0, 0.5, -0.5]])
    torch.testing.assert_close(contrast(full, without, vlmfix.SIRA().alpha), expected)


@in_some_ways
@pytest.mark.parametrize("layer", [None, 4])
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, layer: int | None, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    method = vlmfix.SIRA(layer=layer, fused=fused)

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        image = (single["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten().tolist()
        whole, length = answered(single, new), single["input_ids"].shape[1]

        def choose(step: int, weights: Tensor) -> set[int]:
            return set(range(len(weights))) - set(image)

        return [selected_logits(model, length, layer or 2, choose, lambda: last_logits(model, whole))]

    check_branches(model, family, method, inputs, alone, steps=3, **way)


def test_it_is_sid_without_image_tokens(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    found = []
    for method in (vlmfix.SIRA(layer=3), vlmfix.SID(alpha=0.5, keep=0, layer=3, beta=0.0)):
        with method(llava):
            found.append(values(llava, inputs, max_new_tokens=3))
    assert torch.equal(*found)


def test_half_the_depth_by_default() -> None:
    config = AutoConfig.for_model("llava", **families.FAMILIES["llava"].config)
    for depth, layer in ((32, 16), (28, 14), (5, 2), (2, 1)):
        config.text_config.num_hidden_layers = depth
        assert vlmfix.SIRA().resolve(config, None).layer == layer
    config.text_config.num_hidden_layers = 1
    with pytest.raises(ValueError, match="layer is 1; the layers of this model go from 0 to 0"):
        vlmfix.SIRA().resolve(config, None)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be a number from 0 to 100"),
        ({"layer": 0}, "layer is 0; it must be a layer index, 1 or more, or None"),
        ({"layer": 2.0}, "layer is 2.0"),
        ({"beta": 2}, "beta is 2; it must be a number from 0 to 1"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.SIRA(**parameters)


def test_layer_beyond_the_model(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="layer is 5; the layers of this model go from 0 to 4"):
        vlmfix.SIRA(layer=5)(llava).__enter__()
