"""IAT and AdaIAT: the vectors of their specification, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from tests.support.methods import ATTENTION_TO_TEXT
from vlmfix.methods.attention.adaiat import head_factors, raise_generated
from vlmfix.methods.attention.pai import amplify

REAL, HALLUCINATED = torch.tensor([0.20, 0.12]), torch.tensor([0.08, 0.10])
WEIGHTS = torch.tensor([[0.40, 0.30, 0.20, 0.06, 0.04], [0.50, 0.20, 0.20, 0.02, 0.08]])[None, :, None]
GENERATED = torch.tensor([False, False, False, True, True])[None, None, None]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "released",
            [
                [0.210526, 0.157895, 0.105263, 0.315789, 0.210526],
                [0.446429, 0.178571, 0.178571, 0.039286, 0.157143],
            ],
        ),
        (
            "paper",
            [
                [0.160000, 0.120000, 0.080000, 0.384000, 0.256000],
                [0.290698, 0.116279, 0.116279, 0.095349, 0.381395],
            ],
        ),
    ],
)
def test_vector(form: str, expected: list[list[float]]) -> None:
    factors = head_factors(REAL, HALLUCINATED, alpha=6, form=form)
    threshold = torch.tensor(0.25)  # 0.18 + 0.5 * (0.32 - 0.18)
    edited, attention = raise_generated(WEIGHTS, GENERATED, torch.tensor(2), factors, threshold)
    assert float(attention) == pytest.approx(0.10)
    torch.testing.assert_close(edited[0, :, 0], torch.tensor(expected), atol=1e-6, rtol=0)


def test_vector_of_a_row_above_the_threshold() -> None:
    weights = WEIGHTS.clone()
    weights[0, 1, 0] = torch.tensor([0.1, 0.1, 0.1, 0.3, 0.4])
    factors = head_factors(REAL, HALLUCINATED, alpha=6)
    edited, attention = raise_generated(weights, GENERATED, torch.tensor(2), factors, torch.tensor(0.25))
    assert float(attention) == pytest.approx(0.40)
    assert torch.equal(edited, weights)


def test_heads_that_favour_hallucinated_objects_are_damped_to_zero_at_most() -> None:
    factors = head_factors(torch.tensor([0.0685, 0.1, 0.2]), torch.tensor([0.1, 0.1, 0.0]), alpha=6)
    torch.testing.assert_close(factors, torch.tensor([0.0, 1.0, 1.0]))


def test_vector_of_iat() -> None:
    scores = torch.tensor([2, 1, 0.5, -1, 0.3])
    edited = amplify(scores, 0.8 * GENERATED[0, 0, 0].float()).softmax(dim=-1)
    expected = torch.tensor([0.517050, 0.190212, 0.115369, 0.057291, 0.120078])
    torch.testing.assert_close(edited, expected, atol=1e-6, rtol=0)


def reference(inputs: dict[str, Tensor], edit_row: Any, edited: range) -> Any:
    """An edit of generated rows, of prompts with an image, in some layers."""
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    length = image.shape[1]

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if layer not in edited or position < length or not image[sample].any():
            return None
        return edit_row(layer, scores, slice(length, position + 1))  # type: ignore[no-any-return]

    return edit


@pytest.mark.parametrize(
    ("family", "kwargs"), [("llava", {}), ("qwen3_vl", {}), ("llava", {"use_cache": False})]
)
def test_iat_against_naive_full_matrices(
    family: str, kwargs: dict[str, Any], models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))

    def row(layer: int, scores: Tensor, generated: slice) -> Tensor:
        scores[:, generated] += 2.0 * scores[:, generated].abs()
        return scores.softmax(dim=-1)

    with full_matrices(model, reference(inputs, row, range(1, 4))):
        expected = step_logits(model, inputs)
    method = vlmfix.IAT(alpha=2.0, layers=(1, 4))
    with method(model):
        found = step_logits(model, inputs | kwargs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    changes = (found - step_logits(model, inputs)).abs().amax(dim=2)
    assert changes[0].max() < 1e-6
    assert changes[1:, [0, 2]].min() > 1e-4
    stats = method.edit_stats()
    assert stats.size is not None
    assert stats.size > stats.details["before"] > 0
    assert [row.steps_edited for row in method.latest_edit_stats()] == [3, 0, 3]


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}])
def test_adaiat_against_naive_full_matrices(kwargs: dict[str, Any], llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (2, 0, 1))
    # Rows on both sides of the threshold: layer 2 never reaches it.
    tables = {
        name: tuple(
            tuple(each * (0.1 if layer == 2 else 1) for each in row) for layer, row in enumerate(table)
        )
        for name, table in ATTENTION_TO_TEXT.items()
    }
    real, hallucinated = (torch.tensor(tables[name]).double() for name in ("real", "hallucinated"))
    fired: list[bool] = []
    threshold = (0.75 * hallucinated + 0.25 * real).sum(dim=1)

    def row(layer: int, scores: Tensor, generated: slice) -> Tensor:
        weights = scores.softmax(dim=-1)
        attention = sum(float(weights[head, generated].mean()) for head in range(4))
        fired.append(attention < threshold[layer])
        if fired[-1]:
            for head in range(4):
                ratio = real[layer, head] / hallucinated[layer, head]
                weights[head, generated] *= max(1 + 3 * (ratio - 1), 0)
                weights[head] /= weights[head].sum()
        return weights

    with full_matrices(llava, reference(inputs, row, range(1, 3))):
        expected = step_logits(llava, inputs)
    method = vlmfix.AdaIAT(alpha=3.0, beta=0.25, layers=(1, 3), **tables)
    with method(llava):
        found = step_logits(llava, inputs | kwargs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert 0 < sum(fired) < len(fired)
    if not kwargs:
        assert method.edit_stats().head_share == pytest.approx(sum(fired) / len(fired))


def test_one_token_is_never_edited(llava: PreTrainedModel) -> None:
    method = vlmfix.IAT()
    with method(llava), pytest.warns(vlmfix.InactiveMethodWarning, match="acts from the second new token on"):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=1)


def test_a_threshold_that_nothing_falls_below_is_said(llava: PreTrainedModel) -> None:
    table = ((1e-6,) * 4,) * 5
    method = vlmfix.AdaIAT(real=table, hallucinated=table)
    with (
        method(llava),
        pytest.warns(vlmfix.InactiveMethodWarning, match="as much attention .* as the thresh"),
    ):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=3)


def test_without_statistics_it_refuses(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"adaiat_real\) is not known .* 'vlmfix calibrate"):
        vlmfix.AdaIAT()(llava).__enter__()
    with pytest.raises(ValueError, match="real is for 1 layers of 2 heads; this model has 5 of 4"):
        vlmfix.AdaIAT(real=((0.1, 0.2),), hallucinated=((0.1, 0.2),))(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be a number from 0 to 100"),
        ({"beta": 1.5}, "beta is 1.5; it must be a number from 0 to 1"),
        ({"form": "mine"}, "form is 'mine'; it must be one of 'released', 'paper'"),
        ({"real": 0.1}, "real must hold a number from 0 to 1 for each head of each layer"),
        ({"hallucinated": ((0.1, 0.2), (0.1,))}, "hallucinated must hold"),
        ({"hallucinated": ((0.1, 2.0),)}, "hallucinated must hold"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.AdaIAT(**parameters)
    with pytest.raises(ValueError, match="alpha is -1"):
        vlmfix.IAT(alpha=-1)
