"""Devils in the Middle Layers: the vector of its specification, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from tests.support.spec_rows import IMAGE, SCORES
from vlmfix.methods.attention.devils import lift_together

EXPECTED = torch.tensor(
    [
        [0.324157, 0.072329, 0.252454, 0.022902, 0.059218, 0.072329, 0.196611],
        [0.146152, 0.032611, 0.015404, 0.113823, 0.240963, 0.397281, 0.053766],
    ]
)


def test_vector() -> None:
    lifted = lift_together(SCORES, 0.5 * IMAGE)
    boost = (lifted - SCORES)[0, :, 0]
    torch.testing.assert_close(boost, torch.tensor([[0, 0, 0.75, 0.35, 0.30, 0, 0]]).expand(2, -1))
    torch.testing.assert_close(lifted.softmax(dim=-1)[0, :, 0], EXPECTED, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize(("layers", "edited"), [(None, (1, 2)), ((0, 5), range(5))])
def test_model_against_naive_full_matrices(
    family: str, layers: Any, edited: Any, models: dict[str, PreTrainedModel]
) -> None:
    """The last prompt row and new ones are edited; 5 to 18 of 32 layers are 1 and 2 of 5."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    last = image.shape[1] - 1

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if layer not in edited or position < last:
            return None
        heads = range(len(scores))
        for key in image[sample].nonzero().flatten().tolist():
            mean = sum(abs(float(scores[head, key])) for head in heads) / len(heads)
            for head in heads:
                scores[head, key] += 0.9 * mean
        return scores.softmax(dim=-1)

    with full_matrices(model, edit):
        expected = step_logits(model, inputs)
    with vlmfix.Devils(alpha=0.9, layers=layers)(model):
        found = step_logits(model, inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (found - step_logits(model, inputs))[:, [0, 2]].abs().amax(dim=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("alpha", [-1, 101, "much", True])
def test_values_out_of_range_are_named(alpha: Any) -> None:
    with pytest.raises(ValueError, match=f"alpha is {alpha!r}; it must be a number from 0 to 100"):
        vlmfix.Devils(alpha=alpha)
