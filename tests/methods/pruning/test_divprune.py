"""DivPrune: the vector of its specification and an independent reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.divprune import DivPrune, diverse_subset

DIRECTIONS = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [-1, 0], [0.7, 0.7], [0, -1]])


def naive(tokens: Tensor, count: int) -> list[int]:
    """The formulas of the specification with plain loops in float64."""
    rows = tokens.double().tolist()
    number = len(rows)

    def distance(i: int, j: int) -> float:
        product = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return 1 - product / (math.hypot(*rows[i]) * math.hypot(*rows[j]))

    def isolation(i: int, others: list[int]) -> float:
        return round(min(distance(i, j) for j in others if j != i), 9)

    picks = [max(range(number), key=lambda i: isolation(i, list(range(number))))]
    while len(picks) < count:
        left = [i for i in range(number) if i not in picks]
        picks.append(max(left, key=lambda i: isolation(i, picks)))
    return picks


@pytest.mark.parametrize(("count", "expected"), [(1, [3]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 2, 3, 5])])
def test_vector_in_the_order_of_the_picks(count: int, expected: list[int]) -> None:
    assert diverse_subset(DIRECTIONS, count).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_against_the_naive_formulas_on_random_tokens(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(17, 6, generator=generator)
    for count in (1, 2, 9, 17):
        assert diverse_subset(tokens, count).tolist() == sorted(naive(tokens, count))


def test_length_does_not_matter() -> None:
    lengths = torch.tensor([1, 2, 4, 8, 16, 32])[:, None]
    assert diverse_subset(DIRECTIONS * lengths, 4).tolist() == [0, 2, 3, 5]


def test_equal_tokens_are_picked_once_each() -> None:
    assert diverse_subset(torch.ones(5, 3), 5).tolist() == [0, 1, 2, 3, 4]
    assert diverse_subset(torch.ones(1, 3), 1).tolist() == [0]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("keep_ratio", [0.3, 0.05])
def test_equals_masking(family: str, keep_ratio: float, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != 0:
            return None
        dropped = image.clone()
        for b, mask in enumerate(image):
            places = mask.nonzero().flatten()
            if len(places):
                count = max(1, round(keep_ratio * len(places)))
                dropped[b, places[naive(states[b, places], count)]] = False
        return dropped, states

    with DivPrune(keep_ratio=keep_ratio)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, enter=enter)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-3


def test_a_ratio_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"keep_ratio is -0.1; it must be a number from 0 to 1"):
        DivPrune(keep_ratio=-0.1)
