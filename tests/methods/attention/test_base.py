"""Edits of scores: layers at the same depth, several methods in one layer, what is measured of them."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import permutations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from vlmfix.engine.context import DecodeContext
from vlmfix.methods.attention.base import at_depth

METHODS = (vlmfix.PAI(alpha=0.4), vlmfix.Devils(alpha=0.8), vlmfix.VAF(enhance=1.5, suppress=0.7))


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ((2, 32), 32, (2, 32)),
        ((5, 19), 32, (5, 19)),
        ((9, 15), 32, (9, 15)),
        ((5, 19), 28, (4, 17)),
        ((9, 15), 40, (11, 19)),
        ((2, 32), 40, (2, 40)),
        ((9, 15), 2, (1, 2)),
        ((9, 15), 1, (0, 1)),
    ],
)
def test_layers_at_the_same_depth(layers: tuple[int, int], depth: int, expected: tuple[int, int]) -> None:
    assert at_depth(layers, depth) == expected


def test_edits_in_one_layer_add_up_in_any_order(llava: PreTrainedModel) -> None:
    """All of them read the scores of the model; in layer 1 of 5 the three of them act."""
    inputs = families.prompt("llava", llava, (2, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    real = inputs["attention_mask"].bool()
    last = image.shape[1] - 1

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        places = image[sample].nonzero().flatten()
        before = scores.clone()
        if position >= last:
            scores[:, places] += 0.4 * before[:, places].abs()
            if layer in (1, 2):
                scores[:, places] += 0.8 * before[:, places].abs().mean(dim=0)
        if position > places[-1] and layer == 1:
            scores[:, places] += 0.5 * before[:, places]
            system = real[sample, : int(places[0])].nonzero().flatten()
            scores[:, system] -= 0.3 * before[:, system]
        return None if torch.equal(scores, before) else scores.softmax(dim=-1)

    with full_matrices(llava, edit):
        expected = step_logits(llava, inputs)
    for order in permutations(METHODS):
        with ExitStack() as stack:
            for method in order:
                stack.enter_context(method(llava))
            torch.testing.assert_close(step_logits(llava, inputs), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_attention_to_the_image_is_measured(method: vlmfix.Method, llava: PreTrainedModel) -> None:
    """Over the newest row of every step, edited layer, head and sample with an image, before and after."""
    inputs = families.prompt("llava", llava, (2, 0, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    before: list[Tensor] = []
    after: list[Tensor] = []

    class Watched(type(method)):  # type: ignore[misc]
        def measure_scores(self, context: DecodeContext, layer: int, *weights: Tensor) -> None:
            super().measure_scores(context, layer, *weights)
            for kept, each in zip((before, after), weights, strict=True):
                torch.testing.assert_close(each.sum(dim=-1), torch.ones(each.shape[:2]))
                prompt = each[..., : image.shape[1]]
                kept.append(torch.stack([prompt[row][:, image[row]].sum(dim=1) for row in (0, 2)]))

    watched = Watched(**method.parameters)
    with watched(llava):
        step_logits(llava, inputs)
    edit_stats = watched.edit_stats()
    assert edit_stats.size == pytest.approx(float(torch.stack(after).mean()), rel=1e-5)
    assert edit_stats.details["before"] == pytest.approx(float(torch.stack(before).mean()), rel=1e-5)
    assert "attention to the image" in edit_stats.details["size"]
    assert edit_stats.head_share == 1.0
    if not isinstance(method, vlmfix.VAF):
        assert edit_stats.size > edit_stats.details["before"]
