"""SID: the vector of its specification, and its branch read alone, token by token."""

from __future__ import annotations

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
)
from vlmfix.methods.logits.sid import least_attended


def test_vector() -> None:
    weights = torch.tensor([0.05, 0.01, 0.20, 0.02, 0.08, 0.03])
    chosen = least_attended(weights, torch.ones(6, dtype=torch.bool), torch.tensor(2))
    assert chosen.nonzero().flatten().tolist() == [1, 3]


def test_least_attended_against_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 4, 30, generator=generator)
    weights[:, :, 5] = weights[:, :, 9]  # a tie
    tokens = torch.rand(3, 1, 30, generator=generator) > 0.4
    count = torch.tensor([[0], [7], [100]])
    chosen = least_attended(weights, tokens, count)
    for sample in range(3):
        among = tokens[sample, 0].nonzero().flatten().tolist()
        for row in range(4):
            expected = least(weights[sample, row], among, int(count[sample]))
            assert set(chosen[sample, row].nonzero().flatten().tolist()) == expected


def image_columns(single: Inputs) -> list[int]:
    return (single["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten().tolist()


@in_some_ways
@pytest.mark.parametrize("settings", [{"keep": 2}, {"keep": 0.3, "layer": 1}], ids=["number", "share"])
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, settings: dict[str, Any], way: dict[str, Any], fused: bool
) -> None:
    """What was read under an earlier choice keeps it, with and without a cache."""
    inputs = families.prompt(family, model, images_of(family, way))
    method = vlmfix.SID(beta=0.001, fused=fused, **settings)

    keep = settings["keep"]

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        image, whole = image_columns(single), answered(single, new)

        count = keep if type(keep) is int else round(keep * len(image))

        def choose(step: int, weights: Tensor) -> set[int]:
            return set(range(len(weights))) - set(image) | least(weights, image, count)

        length = single["input_ids"].shape[1]
        return [selected_logits(model, length, method.layer, choose, lambda: last_logits(model, whole))]

    check_branches(model, family, method, inputs, alone, steps=3, **way)


def test_tokens_change_from_step_to_step(llava: PreTrainedModel) -> None:
    """Or choosing anew would not be put to the test."""
    seen = []

    class Watched(vlmfix.SID):
        def combine(self, context: Any, logits: Tensor, branches: Any) -> Tensor:
            seen.append(context.engine.branches[0].selection.seen[0, 0, -1])
            return super().combine(context, logits, branches)

    inputs = families.prompt("llava", llava)
    with Watched(keep=3)(llava):
        llava.generate(**inputs, max_new_tokens=6, do_sample=False)
    image = image_columns(inputs)
    chosen = {tuple(each[image].tolist()) for each in seen}
    assert all(sum(each) == 3 for each in chosen)
    assert len(chosen) > 1


def test_the_default_keeps_100_of_576() -> None:
    assert round(vlmfix.SID().keep * 576) == 100


@pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")
def test_keeping_every_token_is_no_contrast(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    kwargs: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    stock = llava.generate(**inputs, return_dict_in_generate=True, **kwargs)
    with vlmfix.SID(keep=1.0, beta=0.0)(llava):
        output = llava.generate(**inputs, return_dict_in_generate=True, **kwargs)
    torch.testing.assert_close(output.logits, stock.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be"),
        ({"keep": -1}, "keep is -1; it must be a number of tokens"),
        ({"keep": 100.0}, r"keep is 100\.0; it must be"),
        ({"keep": True}, "keep is True"),
        ({"keep": float("nan")}, "keep is nan"),
        ({"layer": 0}, "layer is 0; it must be a layer index, 1 or more"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.SID(**parameters)


def test_layer_beyond_the_model(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="layer is 5; the layers of this model go from 0 to 4"):
        vlmfix.SID(layer=5)(llava).__enter__()
