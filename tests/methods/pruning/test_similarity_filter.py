"""The similarity filter: the vectors of its specification, and an independent reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.similarity_filter import SimilarityFilter, largest_similarity

TOKENS = torch.tensor([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.8, 0.6], [0.5, 0.5, 0.5], [0, 0, 1]])


@pytest.mark.parametrize(
    ("later", "expected", "kept"),
    [
        (True, [0.993884, 0.637577, 0.8, 0.80829, 0.57735, -torch.inf], [1, 4, 5]),
        (False, [0.993884, 0.993884, 0.8, 0.80829, 0.80829, 0.6], [2, 3, 5]),
    ],
)
def test_vectors(later: bool, expected: list[float], kept: list[int]) -> None:
    found = largest_similarity(TOKENS, later=later)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
    assert sorted(found.argsort(stable=True)[:3].tolist()) == kept


def test_of_equal_tokens_the_last_stays_or_none() -> None:
    tokens = torch.tensor([[1.0, 0], [0, 1.0], [2.0, 0], [-1.0, 1.0]])
    assert largest_similarity(tokens, later=True).argsort(stable=True)[:3].tolist() == [3, 2, 1]
    assert sorted(largest_similarity(tokens, later=False).argsort(stable=True)[:2].tolist()) == [1, 3]


@pytest.mark.parametrize(
    ("family", "direction"), [("llava", "later"), ("llava", "all"), ("qwen3_vl", "later")]
)
def test_equals_masking(family: str, direction: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != 0:
            return None
        dropped = image.clone()
        for row, mask in enumerate(image):
            places = mask.nonzero().flatten().tolist()
            tokens = states[row].double()
            worst = {
                i: max(
                    (
                        float(torch.cosine_similarity(tokens[i], tokens[j], dim=0))
                        for j in places
                        if (j > i if direction == "later" else j != i)
                    ),
                    default=-2.0,
                )
                for i in places
            }
            dropped[row, sorted(places, key=lambda i: worst[i])[:3]] = False
        return dropped, states

    with SimilarityFilter(kept_tokens=3, direction=direction)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, enter=enter)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[0, -1] - expected[0]).abs().max() > 1e-3


def test_another_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="direction is 'earlier'; it must be one of 'later', 'all'"):
        SimilarityFilter(direction="earlier")
