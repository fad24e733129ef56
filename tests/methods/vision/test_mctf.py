"""MCTF: the vectors of its specification and a slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import families, merging
from vlmfix.methods.vision.mctf import MCTF, fused_attention, fused_pairs, pair_weights
from vlmfix.methods.vision.merging import Merge, Tokens

STATES = torch.tensor([[[1, 1], [1, 0], [0.9, 0.2], [0, 1], [0.1, 1], [1, 0.8], [0.7, 0.7]]])
RECEIVED = torch.tensor([[0.3, 0.1, 0.05, 0.2, 0.15, 0.15, 0.05]])
SIZES = torch.tensor([[1.0, 1, 2, 1, 1, 3, 1]])
TAUS = (1.0, 20.0, 40.0)


def test_vectors() -> None:
    weights = pair_weights(STATES, RECEIVED, SIZES, taus=TAUS)
    expected = [
        [0.938039, 0.557965, 0.858832],
        [0.502642, 0.880972, 0.740625],
        [0.824478, 0.796393, 0.918091],
    ]
    torch.testing.assert_close(weights[0, 1:], torch.tensor(expected), atol=1e-6, rtol=0)
    merge = fused_pairs(weights, 3, first_is_class=True)
    # 2 goes into 1, then 5 into 6 and 3 into 4; even places come first.
    assert merge.size == 4
    assert merge.target.tolist() == [[0, 3, 3, 1, 1, 2, 2]]
    fused = merge.applied(Tokens.unmerged(STATES), RECEIVED * SIZES)
    torch.testing.assert_close(fused.states[0, 3], torch.tensor([0.95, 0.1]), atol=1e-6, rtol=0)
    by_size = merge.mean(STATES, SIZES)
    torch.testing.assert_close(by_size[0, 3], torch.tensor([0.933333, 0.133333]), atol=1e-6, rtol=0)


def test_a_chain_is_one_token() -> None:
    """2 goes into 1, which then goes into 4."""
    weights = torch.tensor([[[0, 0, 0], [0.9, 0.1, 0.1], [0.8, 0.2, 0.1], [0.3, 0.2, 0.1]]])
    merge = fused_pairs(weights, 2, first_is_class=True)
    assert merge.target.tolist() == [[0, 1, 1, 3, 1, 4, 2]]


def test_attention_after_the_fusion_is_that_before_it_fused() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 3, 5, 5, generator=generator).softmax(dim=-1)
    value = torch.randn(2, 3, 3, 4, generator=generator)
    share = torch.rand(2, 5, generator=generator)
    merge = Merge(torch.tensor([[0, 1, 1, 2, 0], [2, 1, 0, 0, 0]]), 3)
    found = fused_attention(weights, value, merge, share)
    for picture in range(2):
        columns = torch.zeros(5, 3)
        rows = torch.zeros(3, 5)
        for token, new in enumerate(merge.target[picture].tolist()):
            columns[token, new] = 1
            rows[new, token] = share[picture, token]
        rows /= rows.sum(dim=1, keepdim=True)
        expected = rows @ weights[picture] @ columns @ value[picture]
        torch.testing.assert_close(found[picture], expected, atol=1e-5, rtol=1e-5)


def by_hand(layer: Any, states: Tensor, groups: list[merging.Group], merged: int) -> Any:
    query, key, _ = merging.projections(layer, states)
    tokens, sizes = len(states), [len(group) for group in groups]
    weights = [
        merging.attention(query[:, head], key[:, head], sizes, layer.self_attn.scale)
        for head in range(query.shape[1])
    ]
    received = [float(sum(each[:, j].mean() for each in weights)) / len(weights) for j in range(tokens)]

    def weight(a: int, b: int) -> float:
        lows = [
            (min(values) / values[a] * min(values) / values[b]) ** (1 / tau)
            for values, tau in ((received, 20), (sizes, 40))
        ]
        return float((merging.cosine(states[a], states[b]) + 1) / 2 * lows[0] * lows[1])

    even, odd = range(2, tokens, 2), range(1, tokens, 2)
    into: dict[int, int] = {}
    ranked = sorted(((max((weight(a, b), -b) for b in odd), a) for a in even), key=lambda each: -each[0][0])
    into |= {a: -b for (_, b), a in ranked[: merged // 2]}
    rest = [a for a in even if a not in into]
    ranked = sorted(((max((weight(a, b), -a) for a in rest), b) for b in odd), key=lambda each: -each[0][0])
    into |= {b: -a for (_, a), b in ranked[: merged - merged // 2]}
    ends = [into.get(into.get(j, j), into.get(j, j)) for j in range(tokens)]
    stays = [j for j in (*range(0, tokens, 2), *odd) if j not in into]
    rows = torch.zeros(len(stays), tokens).double()
    columns = torch.zeros(tokens, len(stays)).double()
    for j, end in enumerate(ends):
        rows[stays.index(end), j] = received[j] * sizes[j]
        columns[j, stays.index(end)] = 1
    rows = rows / rows.sum(dim=1, keepdim=True)
    states = rows @ states
    *_, value = merging.projections(layer, states)
    heads = [rows @ each @ columns @ value[:, head] for head, each in enumerate(weights)]
    states = states + layer.self_attn.out_proj(torch.cat(heads, dim=1))
    fused = [[patch for j, end in enumerate(ends) if end == stay for patch in groups[j]] for stay in stays]
    return states + layer.mlp(layer.layer_norm2(states)), fused


@pytest.mark.parametrize(("first", "merged"), [(1, 5), (0, 4)])
def test_equals_the_slow_reference(first: int, merged: int) -> None:
    model = merging.model()
    inputs = families.prompt("llava", model, (2, 1, 0))
    with torch.no_grad():
        with MCTF(merged_per_layer=merged, first_layer=first)(model):
            found = model(**inputs).logits[:, -1]
        expected = merging.reference(model, inputs, lambda *args: by_hand(*args, merged), first)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-2


def test_values_out_of_range_are_named() -> None:
    for name in ("tau_similarity", "tau_attention", "tau_size"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be a number from 0.01 to 1000"):
            MCTF(**{name: 0})  # type: ignore[arg-type]
