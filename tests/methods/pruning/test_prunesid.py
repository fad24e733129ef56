"""PruneSID: the vectors of its specification, and what it keeps of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.support import families
from vlmfix.methods.pruning.prunesid import (
    PruneSID,
    alike,
    mean_similarity,
    principal_groups,
    share_out,
    suppress,
)

FEATURES = torch.tensor(
    [
        [2, 0, -1, 0.5],
        [1.8, 0.1, -1, 0.4],
        [-1, 2, 0, 1],
        [-1.2, 2.2, 0.1, 0.9],
        [0, 0, 2, -2],
        [0.1, -0.2, 1.9, -1.8],
        [1, 1, 1, -1],
        [0, 1, -1, 0],
    ]
)
SCORES = torch.tensor([0.30, 0.20, 0.12, 0.16, 0.05, 0.04, 0.08, 0.02])


def kept(threshold: float, count: int = 4) -> list[int]:
    labels = principal_groups(FEATURES, 2).labels
    picked, orders = suppress(alike(FEATURES, threshold), SCORES, labels)
    taken = share_out(picked, [len(order) for order in orders], count, cap=5)
    return torch.cat([order[:take] for order, take in zip(orders, taken, strict=True)]).sort().values.tolist()


def test_vectors_of_the_groups() -> None:
    groups = principal_groups(FEATURES, 2)
    assert groups.labels.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert groups.loadings[[0, 4]].tolist() == pytest.approx([0.472681, 0.567061], abs=1e-6)
    assert mean_similarity(FEATURES) == pytest.approx(0.046581, abs=1e-6)
    assert mean_similarity(FEATURES[:1]) == 0


def test_vectors_of_the_suppression() -> None:
    labels = principal_groups(FEATURES, 2).labels
    picked, orders = suppress(alike(FEATURES, 0.9), SCORES, labels)
    assert picked == [3, 2]
    assert [order.tolist() for order in orders] == [[6, 4, 7, 5], [0, 3, 1, 2]]
    picked, orders = suppress(alike(FEATURES, 0.5), SCORES, labels)
    assert picked == [2, 2]
    assert orders[0].tolist()[:2] == [6, 7]


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [0, 3, 6, 7]), (0.9, [0, 3, 4, 6])])
def test_vectors_of_what_stays(threshold: float, expected: list[int]) -> None:
    assert kept(threshold) == expected


def test_a_suppressed_token_suppresses_none() -> None:
    chain = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.28, 0.96]])  # neighbours are alike, the ends are not
    picked, [order] = suppress(alike(chain, 0.7), torch.tensor([3.0, 2.0, 1.0]), torch.zeros(3).long())
    assert (picked, order.tolist()) == ([2], [0, 2, 1])


@pytest.mark.parametrize(
    ("picked", "sizes", "count", "cap", "taken"),
    [
        ([3, 2], [4, 4], 4, 5, [2, 2]),
        ([1, 1], [5, 3], 6, 5, [3, 3]),  # more than was picked
        ([9, 1], [9, 1], 4, 5, [3, 1]),
        ([9, 1], [9, 1], 4, 2, [3, 1]),  # a cap that gives way
        ([4, 4, 1], [4, 4, 1], 3, 5, [1, 1, 1]),
    ],
)
def test_shares(picked: list[int], sizes: list[int], count: int, cap: int, taken: list[int]) -> None:
    assert share_out(picked, sizes, count, cap=cap) == taken
    assert sum(taken) == count


def test_the_class_token_takes_the_place_of_the_first_that_leaves(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    places = (inputs["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten().tolist()
    entered: list[torch.Tensor] = []
    norm = llava.get_decoder().layers[0].input_layernorm  # after the pruning
    handle = norm.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.no_grad():
        llava(**inputs)
        for own in (True, False):
            with PruneSID(kept_tokens=6, keep_class_token=own)(llava):
                llava(**inputs)
        encoded = llava.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        class_token = llava.model.multi_modal_projector(encoded.hidden_states[-2][:, :1])[0, 0]
    handle.remove()
    whole, with_class, without = (states[0, places[0] :] for states in entered)
    assert len(with_class) == len(without) == len(whole) - 16 + 6
    stock = [any(torch.equal(state, old) for old in whole[:16]) for state in with_class[:6]]
    assert stock.count(False) == 1
    torch.testing.assert_close(with_class[stock.index(False)], class_token, atol=1e-5, rtol=1e-5)
    assert all(any(torch.equal(state, old) for old in whole[:16]) for state in without[:6])


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
def test_it_keeps_its_budget(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 2, 0))
    method = PruneSID(kept_tokens=9)
    with method(model), torch.no_grad():
        model(**inputs)
    stats = method.edit_stats()
    assert stats.size == 9
    assert 0 <= stats.details["nms_active"] <= 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kept_tokens": 0}, "kept_tokens is 0"),
        ({"keep_class_token": 1}, "keep_class_token is 1; it must be true or false"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneSID(**parameters)
