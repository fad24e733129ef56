"""DeCo: the formula on worked examples and against loops, and answers worked out without a cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families, layer_reference
from vlmfix.methods.logits.deco import Likeliest

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
EXITS = torch.tensor([[[1.0, 1.2, 0.8, -0.5, -1.0], [0.0, 2.5, 0.5, 0.0, -2.0]]])
INF = torch.inf


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_worked_example() -> None:
    likeliest = Likeliest.of(LOGITS, 0.9, 20)
    assert likeliest.tokens[likeliest.mask].tolist() == [0, 1, 2]
    corrected, sureness = likeliest.correct(EXITS, 0.6)
    close(sureness[None], [0.763001])
    mixed = layer_reference.released(likeliest.spread(corrected, LOGITS))
    close(mixed, [2.0, 2.144501, 0.7289, -INF, -INF])
    close(mixed.softmax(-1), [0.410511, 0.474331, 0.115158, 0.0, 0.0])
    two = Likeliest.of(LOGITS, 0.9, 2)
    assert two.tokens[two.mask].tolist() == [0, 1]


def test_sets_of_likely_tokens() -> None:
    def kept(top_p: float, top_k: int) -> int:
        return int(Likeliest.of(LOGITS, top_p, top_k).mask.sum())

    assert [kept(top_p, 0) for top_p in (0.0, 0.6, 0.61, 0.83, 0.9, 0.97, 1.0)] == [1, 1, 2, 2, 3, 4, 5]
    assert [kept(1.0, top_k) for top_k in (0, 1, 4, 9)] == [5, 1, 4, 5]
    assert [kept(0.9, top_k) for top_k in (0, 1, 2, 3, 4)] == [3, 1, 2, 3, 3]


def naive(
    logits: list[float], exits: list[list[float]], alpha: float, top_p: float, top_k: int
) -> list[float]:
    """The formula of one row, in double precision, a number at a time."""

    def probabilities(values: list[float]) -> list[float]:
        powers = [math.exp(value - max(values)) for value in values]
        return [power / sum(powers) for power in powers]

    last = probabilities(logits)
    kept: list[int] = []
    total = 0.0
    for token in sorted(range(len(last)), key=lambda token: -last[token]):
        if len(kept) == top_k or total >= top_p:
            break
        kept.append(token)
        total += last[token]
    surest, chosen = -1.0, exits[0]
    for values in exits:
        early = probabilities(values)
        for token in kept:
            if early[token] > surest:
                surest, chosen = early[token], values
    return [
        value + alpha * surest * chosen[token] if token in kept else -INF
        for token, value in enumerate(logits)
    ]


@pytest.mark.parametrize("top_k", [3, 20])
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, 40, generator=generator)
    exits = 3 * torch.randn(5, 7, 40, generator=generator)
    likeliest = Likeliest.of(logits, 0.8, top_k)
    mixed = layer_reference.released(likeliest.spread(likeliest.correct(exits, 0.7)[0], logits))
    expected = [
        naive(row.double().tolist(), early.double().tolist(), 0.7, 0.8, top_k)
        for row, early in zip(logits, exits, strict=True)
    ]
    assert len({int(row.isfinite().sum()) for row in mixed}) > (1 if top_k == 20 else 0)
    torch.testing.assert_close(mixed, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_first_exit_of_equals() -> None:
    flipped = EXITS.clone()
    flipped[0, 0] = EXITS[0, 1].flip(0)[[4, 3, 2, 1, 0]] + 5  # the same probabilities, other logits
    likeliest = Likeliest.of(LOGITS, 0.9, 20)
    corrected, _ = likeliest.correct(flipped[:, [1, 0]], 0.6)
    close(layer_reference.released(likeliest.spread(corrected, LOGITS)), [2.0, 2.144501, 0.7289, -INF, -INF])


def test_exits_at_every_depth() -> None:
    assert vlmfix.DeCo.published_exits(32) == tuple(range(20, 29))
    assert vlmfix.DeCo.published_exits(40) == tuple(range(25, 36))
    assert vlmfix.DeCo.published_exits(28) == tuple(range(18, 25))
    assert vlmfix.DeCo.published_exits(4) == (2, 3)
    assert vlmfix.DeCo.published_exits(1) == (0,)


def test_refusals(llava: PreTrainedModel) -> None:
    for make, words in (
        (lambda: vlmfix.DeCo(alpha=-1), "from 0 to 100"),
        (lambda: vlmfix.DeCo(top_p=1.1), "from 0 to 1"),
        (lambda: vlmfix.DeCo(top_k=2.0), "whole number"),
        (lambda: vlmfix.DeCo(exits=()), "one exit at least"),
        (lambda: vlmfix.DeCo(normed="yes"), "true or false"),
        (lambda: vlmfix.DeCo(exits=(5,))(llava).__enter__(), "go from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def mixing(method: vlmfix.DeCo, model: PreTrainedModel) -> Any:
    """What the method makes of logits and of the stream at every exit, for one sequence, by loops."""
    exits = method.resolve(model.config, None).exits
    assert exits is not None
    norm, head = model.get_decoder().norm, model.get_output_embeddings()

    @torch.no_grad()
    def mix(logits: Tensor, states: list[Tensor]) -> Tensor:
        streams = [norm(states[each]) if method.normed else states[each] for each in exits]
        early = [head(stream).double().tolist() for stream in streams]
        top_k = method.top_k or len(logits)
        return torch.tensor(naive(logits.double().tolist(), early, method.alpha, method.top_p, top_k))

    return mix


@pytest.mark.parametrize(
    "method",
    [vlmfix.DeCo(), vlmfix.DeCo(top_p=0.3, top_k=0, normed=False, exits=(0, 2, 4), alpha=20.0)],
    ids=["default", "other"],
)
def test_against_brute_force(method: vlmfix.DeCo, model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    expected = layer_reference.answers(model, family, inputs, mixing(method, model))
    method.reset_edit_stats()
    with method(model):
        got = layer_reference.generated(model, inputs)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    edit_stats = method.edit_stats()
    assert edit_stats.site_share == 1
    assert edit_stats.size is not None
    assert 0 < edit_stats.size < 1
    assert edit_stats.details["candidates"] == pytest.approx(float(got.isfinite().sum(dim=-1).float().mean()))


def test_sampling_draws_from_the_likely_tokens(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1,))
    method = vlmfix.DeCo()
    mix = mixing(method, model)
    torch.manual_seed(3)
    new: list[int] = []
    for _ in range(6):
        mixed = mix(*layer_reference.read(model, families.continued(inputs, new)))
        new.append(int(torch.multinomial(mixed.softmax(-1)[None], 1)))
    torch.manual_seed(3)
    with method(model):
        output = model.generate(**inputs, max_new_tokens=6, do_sample=True, top_k=0)
    assert output[0, inputs["input_ids"].shape[1] :].tolist() == new


def test_beams_follow(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 1, 0))
    outputs = []
    for kwargs in ({}, {"use_cache": False}):
        with vlmfix.DeCo(alpha=2.0)(model):
            outputs.append(model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=4, **kwargs))
    assert torch.equal(*outputs)


def test_the_cut_alone_taps_nothing(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    stock = layer_reference.generated(llava, inputs)[0]
    with vlmfix.DeCo(alpha=0, top_p=1, top_k=5)(llava):
        cut = layer_reference.generated(llava, inputs)[0]
    assert torch.equal(cut, torch.where(stock >= stock.sort(descending=True).values[:, 4:5], stock, -INF))
