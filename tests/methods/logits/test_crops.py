"""CRoPS: the vectors of its specification, a loop, and its two branches read alone, token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    Inputs,
    answered,
    check_branches,
    images_of,
    in_some_ways,
    last_logits,
    least,
    selected_logits,
    text_ids,
    text_logits,
)
from vlmfix.methods.logits.crops import contrast_twice, kept_text_tokens

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
TEXT = torch.tensor([[1.5, 1.2, -0.5, -1.0, 0.0]])
IMAGE = torch.tensor([[1.0, 1.5, 0.0, -2.0, -1.0]])


@pytest.mark.parametrize(
    ("generated", "expected", "shares"),
    [
        (0, [0.241295, -2.272775, -1.748655], [0.821261, 0.066471, 0.112268]),
        (49, [0.644403, -2.763806, -0.706875], [0.773988, 0.025619, 0.200392]),
    ],
)
def test_vectors(generated: int, expected: list[float], shares: list[float]) -> None:
    weight = math.expm1(0.01 * (generated + 1))
    mixed = contrast_twice(LOGITS, TEXT, IMAGE, weight=weight, alpha=1.0, confidence=0.95, beta=0.1)
    torch.testing.assert_close(mixed[0, :3], torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed.softmax(-1)[0], torch.tensor([*shares, 0, 0]), atol=1e-6, rtol=0)


def test_kept_text_tokens() -> None:
    assert kept_text_tokens(torch.tensor([1, 50, 100, 500]) - 1).tolist() == [10, 11, 12, 21]
    exact = [math.floor(10 + 30 * (1 - math.exp(-0.001 * tokens))) for tokens in range(1, 5001)]
    assert kept_text_tokens(torch.arange(5000)).tolist() == exact


def log_probabilities(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(each) for each in logits))
    return [each - total for each in logits]


def test_formula_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    gated = 0
    for _ in range(30):
        logits, text, image = (3 * torch.randn(1, 7, generator=generator) for _ in range(3))
        weight, alpha, confidence, beta = torch.rand(4, generator=generator).tolist()
        own = logits[0].tolist()
        kept = [token for token in range(7) if math.exp(own[token] - max(own)) >= beta]
        cut = dict(zip(kept, log_probabilities([own[token] for token in kept]), strict=True))
        first, second = (log_probabilities(each[0].tolist()) for each in (text, image))
        expected = [-math.inf] * 7
        sure = max(math.exp(each) for each in cut.values()) > confidence
        gated += sure
        for token in kept:
            moved = cut[token] + weight * (cut[token] - first[token])
            expected[token] = cut[token] if sure else moved + alpha * (moved - second[token])
        found = contrast_twice(
            logits, text, image, weight=weight, alpha=alpha, confidence=confidence, beta=beta
        )
        torch.testing.assert_close(found[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert 0 < gated < 30


@in_some_ways
def test_branches_equal_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        image = (single["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten().tolist()
        text, whole = text_ids(model, single), answered(single, new)
        length = single["input_ids"].shape[1]

        def choose_text(step: int, weights: Tensor) -> set[int]:
            kept = math.floor(10 + 30 * (1 - math.exp(-0.001 * (step + 1))))
            return least(weights, list(range(len(weights))), kept)

        def choose_image(step: int, weights: Tensor) -> set[int]:
            return set(range(len(weights))) - set(image) | least(weights, image, round(0.25 * len(image)))

        return [
            selected_logits(model, len(text), 2, choose_text, lambda: text_logits(model, [*text, *new])),
            selected_logits(model, length, 2, choose_image, lambda: last_logits(model, whole)),
        ]

    check_branches(model, family, vlmfix.CRoPS(beta=0.001, fused=fused), inputs, alone, steps=3, **way)


@pytest.mark.parametrize(("settings", "count"), [({"decay": 0}, 1), ({"alpha": 0}, 1), ({}, 2)])
def test_what_has_no_weight_is_not_read(settings: dict[str, Any], count: int, llava: PreTrainedModel) -> None:
    read = []

    class Watched(vlmfix.CRoPS):
        def combine(self, context: Any, logits: Tensor, branches: Any) -> Tensor:
            read.append(len(branches))
            both = dict.fromkeys(("text", "image"), branches[-1])
            mixed = super().combine(context, logits, branches)
            if count == 1:
                numbers = {"weight": math.expm1(self.decay * (context.step + 1)), "alpha": self.alpha}
                expected = contrast_twice(logits, **both, **numbers, confidence=0.95, beta=0.1)
                torch.testing.assert_close(mixed, expected)
            return mixed

    with Watched(**settings)(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=3, do_sample=False)
    assert read == [count] * 3


def test_values_out_of_range() -> None:
    for parameters in ({"decay": 2}, {"alpha": -1}, {"confidence": 1.5}, {"beta": -0.1}):
        with pytest.raises(ValueError, match="must be"):
            vlmfix.CRoPS(**parameters)
