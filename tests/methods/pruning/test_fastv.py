"""FastV: the vectors of its specification and the pruned model against a masked one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.base import keep_top, mean_tokens
from vlmfix.methods.pruning.fastv import FastV, kept_counts, last_row_scores

LAST_ROWS = torch.tensor(
    [[0.30, 0.05, 0.20, 0.02, 0.03, 0.10, 0.30], [0.10, 0.25, 0.02, 0.08, 0.05, 0.20, 0.30]]
)


def test_vector_of_the_scores() -> None:
    weights = torch.stack([torch.full_like(LAST_ROWS, 9.0), LAST_ROWS], dim=1)[None]
    scores = last_row_scores(weights)
    torch.testing.assert_close(scores[0, 1:5], torch.tensor([0.15, 0.11, 0.05, 0.04]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, [1, 2]), (0.25, [1, 2, 3]), (0.75, [1])])
def test_vectors_of_the_kept_tokens(ratio: float, expected: list[int]) -> None:
    scores = last_row_scores(LAST_ROWS[None, :, None])
    image = torch.tensor([[False, True, True, True, True, False, False]])
    kept = keep_top(scores, image, kept_counts(image, ratio))
    assert kept[0].nonzero().flatten().tolist() == [0, *expected, 5, 6]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("start_layer", "ratio"), [(1, 0.5), (3, 0.75), (2, 1.0)])
def test_equals_masking(
    family: str, start_layer: int, ratio: float, models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != start_layer:
            return None
        dropped = torch.zeros_like(image)
        for b, mask in enumerate(image):
            places = mask.nonzero().flatten().tolist()
            scores = {j: float(seen[start_layer - 1][b, :, -1, j].mean()) for j in places}
            kept = sorted(places, key=lambda j: -scores[j])[: round(len(places) * (1 - ratio))]
            dropped[b, [j for j in places if j not in kept]] = True
        return dropped, states

    with FastV(start_layer=start_layer, prune_ratio=ratio)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, enter=enter)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prune_ratio": 1.5}, r"prune_ratio is 1.5; it must be a number from 0 to 1"),
        ({"start_layer": 0}, r"start_layer is 0; it must be a layer index, 1 or more"),
        ({"start_layer": 2.0}, r"start_layer is 2.0"),
        ({"position_scheme": "new"}, r"position_scheme is 'new'"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastV(**parameters)


def test_a_layer_beyond_the_model(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"start_layer is 5; .* 0 to 4"), FastV(start_layer=5)(llava):
        pass


def test_mean_tokens_of_llava() -> None:
    for ratio, mean in [(0.25, 441), (0.5, 306), (0.75, 171)]:
        kept = int(kept_counts(torch.ones(1, 576, dtype=torch.bool), ratio))
        assert mean_tokens(576, 32, [2], [kept]) == mean
