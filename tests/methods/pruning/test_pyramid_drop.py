"""PyramidDrop: the vectors of its specification and the pruned model against a masked one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.engine.attention_formulas import attention_scores
from vlmfix.methods.pruning.base import mean_tokens
from vlmfix.methods.pruning.fastv import last_row_scores
from vlmfix.methods.pruning.pyramid_drop import PyramidDrop, pyramid_counts


def test_vector_of_the_row() -> None:
    query = torch.tensor([1.0, 0.0])[None, None, None]
    key = torch.tensor([[0.0, 1], [2, 0], [1, 1], [0.5, 0], [0, 0]])[None, None]
    scores = last_row_scores(attention_scores(query, key, 2**-0.5).softmax(dim=-1))
    expected = torch.tensor([[0.104543, 0.430010, 0.212024, 0.148881, 0.104543]])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_counts_are_shares_of_the_prompt_rounded_down() -> None:
    image = torch.arange(600)[None] < torch.tensor([576, 15, 0])[:, None]
    assert [pyramid_counts(image, ratio).tolist() for ratio in (0.5, 0.25, 0.125)] == [
        [288, 7, 0],
        [144, 3, 0],
        [72, 1, 0],
    ]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(("layers", "ratios"), [((1, 3), (0.5, 0.2)), ((0, 2, 4), (0.7, 0.4, 0.0))])
def test_equals_masking(
    family: str, layers: tuple[int, ...], ratios: tuple[float, ...], models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    left = [mask.nonzero().flatten().tolist() for mask in image]
    totals = [len(places) for places in left]

    def peek(layer: int, weights: Tensor) -> Tensor | None:
        if layer not in layers:
            return None
        dropped = torch.zeros_like(image)
        for b, places in enumerate(left):
            scores = {j: float(weights[b, :, -1, j].mean()) for j in places}
            count = int(totals[b] * ratios[layers.index(layer)])
            left[b] = sorted(places, key=lambda j: -scores[j])[:count]
            dropped[b, [j for j in places if j not in left[b]]] = True
        return dropped

    with PyramidDrop(prune_layers=layers, keep_ratios=ratios)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, peek=peek)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"keep_ratios": (0.5, 0.25, 1.5)}, r"keep_ratios is 1.5; it must be a number from 0 to 1"),
        ({"keep_ratios": (0.5, 0.25)}, r"one value for each of the prune_layers \(8, 16, 24\)"),
        ({"prune_layers": (1, 2)}, r"keep_ratios is \(0.5, 0.25, 0.125\); .* prune_layers \(1, 2\)"),
        ({"prune_layers": (3, 2, 1)}, r"prune_layers is \(3, 2, 1\); .* in ascending order"),
        ({"prune_layers": (1, 1, 2)}, r"prune_layers is \(1, 1, 2\)"),
        ({"prune_layers": -1, "keep_ratios": 0.5}, r"prune_layers is -1"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidDrop(**parameters)


def test_published_layers_are_for_published_depths() -> None:
    for depth in (32, 40):
        config = LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": depth})
        assert PyramidDrop().resolve(config, None).layers == (8, 16, 24)
    config = LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": 28})
    with pytest.raises(ValueError, match="published for 28 layers, only for 32 and 40; pass prune_layers"):
        PyramidDrop().resolve(config, None)
    with pytest.raises(ValueError, match=r"prune_layers has 28; .* from 0 to 27"):
        PyramidDrop(prune_layers=28, keep_ratios=0.5).resolve(config, None)


def test_mean_tokens_of_llava() -> None:
    image = torch.ones(1, 576, dtype=torch.bool)
    kept = [int(pyramid_counts(image, ratio)) for ratio in PyramidDrop().keep_ratios]
    assert mean_tokens(576, 32, [8, 16, 24], kept) == 270
    assert mean_tokens(576, 40, [8, 16, 24], kept) == 230.4
