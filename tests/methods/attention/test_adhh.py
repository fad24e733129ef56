"""AD-HH: the vectors of its specification, published lists, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaNextConfig, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from tests.support.spec_rows import SCORES, TEXT
from vlmfix.methods.attention.adhh import deactivate
from vlmfix.models.profiles import find_profile

HEADS = ((1, 0), (1, 3), (3, 1), (3, 2))


def test_vector() -> None:
    weights = SCORES.softmax(dim=-1)
    edited, mass = deactivate(weights, TEXT, threshold=0.4)
    torch.testing.assert_close(mass.flatten(), torch.tensor([0.318391, 0.503510]), atol=1e-6, rtol=0)
    assert torch.equal(edited[0, 0], weights[0, 0])
    expected = torch.tensor([0.163151, 0.036404, 0.008123, 0.089539, 0.199273, 0, 0])
    torch.testing.assert_close(edited[0, 1, 0], expected, atol=1e-6, rtol=0)
    assert float(edited[0, 1].sum()) == pytest.approx(0.496490, abs=1e-6)


def test_vector_of_the_output_equals_the_gate() -> None:
    """Without the text columns and scaled down, the renormalised output is the same."""
    values = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 0], [0, 2], [-1, 1], [1, -1]]).float()
    edited, mass = deactivate(SCORES.softmax(dim=-1), TEXT, threshold=0.4)
    expected = torch.tensor([0.350352, 0.443073])
    torch.testing.assert_close(edited[0, 1, 0] @ values, expected, atol=1e-6, rtol=0)
    gated = (1 - mass[0, 1, 0]) * (SCORES[0, 1, 0].masked_fill(TEXT[0], -torch.inf).softmax(dim=-1) @ values)
    torch.testing.assert_close(gated, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_model_against_naive_full_matrices(family: str, models: dict[str, PreTrainedModel]) -> None:
    """The last prompt row and new ones are edited; the question and what was generated are the text."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    last = image.shape[1] - 1
    masses: list[float] = []

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if position < last or not image[sample].any():
            return None
        weights = scores.softmax(dim=-1)
        text = slice(int(image[sample].nonzero().max()) + 1, None)
        for head in [head for each, head in HEADS if each == layer]:
            masses.append(float(weights[head, text].sum()))
            if masses[-1] >= 0.25:
                weights[head, text] = 0
        return weights

    with full_matrices(model, edit):
        expected = step_logits(model, inputs)
    method = vlmfix.ADHH(heads=HEADS, threshold=0.25)
    with method(model):
        found = step_logits(model, inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (found - step_logits(model, inputs)).abs().max() > 1e-3
    edit_stats = method.edit_stats()
    assert edit_stats.size == pytest.approx(sum(masses) / len(masses), rel=1e-4)
    assert edit_stats.head_share == pytest.approx(sum(mass >= 0.25 for mass in masses) / len(masses))
    assert 0 < edit_stats.head_share < 1
    assert [row.eligible for row in method.latest_edit_stats()] == [4 * len(HEADS), 0, 4 * len(HEADS)]


def test_a_threshold_that_nothing_reaches_is_said(llava: PreTrainedModel) -> None:
    method = vlmfix.ADHH(heads=HEADS, threshold=1.0)
    with method(llava), pytest.warns(vlmfix.InactiveMethodWarning, match="no listed head puts 1 of its"):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


def test_both_forms_of_strength_zero() -> None:
    assert vlmfix.ADHH(heads=[]).is_identity
    assert vlmfix.ADHH(threshold=1.01).is_identity
    assert not vlmfix.ADHH().is_identity


def test_published_lists() -> None:
    small = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008}
    medium = {
        "model_type": "llama",
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 13824,
    }
    large = {
        "model_type": "llama",
        "hidden_size": 7168,
        "num_hidden_layers": 60,
        "num_attention_heads": 56,
        "intermediate_size": 20480,
    }
    for config, count, one in (
        (LlavaConfig(text_config=small), 20, (16, 29)),
        (LlavaConfig(text_config=medium), 35, (19, 37)),
        (LlavaNextConfig(text_config=large), 10, (43, 48)),
    ):
        heads = vlmfix.ADHH().resolve(config, find_profile(config)).heads
        assert heads is not None
        assert len(heads) == count
        assert one in heads


def test_without_a_list_it_refuses(llava: PreTrainedModel) -> None:
    with (
        pytest.raises(ValueError, match=r"no hallucination heads are known .* pass heads=\(\(layer, head\)"),
        vlmfix.ADHH()(llava),
    ):
        pass


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": -0.1}, "threshold is -0.1; it must be a number from 0 on"),
        ({"heads": 5}, "heads is 5; it must hold pairs of layer and head"),
        ({"heads": (1, 2)}, r"heads is \(1, 2\)"),
        ({"heads": [[1, 2, 3]]}, r"heads is \[\[1, 2, 3\]\]"),
        ({"heads": [[1, -2]]}, r"heads is \[\[1, -2\]\]"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.ADHH(**parameters)


@pytest.mark.parametrize("pair", [(5, 0), (0, 4)])
def test_heads_beyond_the_model(pair: tuple[int, int], llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="go from 0 to 4, its heads from 0 to 3"):
        vlmfix.ADHH(heads=[pair])(llava).__enter__()
