"""DoLa: the formula on worked examples and against loops, and answers worked out without a cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import vlmfix
from tests.support import families, layer_reference
from vlmfix.methods.logits.base import plausible
from vlmfix.methods.logits.dola import candidates, contrast_layers

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
EXITS = torch.tensor([[[1.0, 1.2, 0.8, -0.5, -1.0], [0.0, 2.5, 0.5, 0.0, -2.0]]])
INF = torch.inf


def close(got: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_worked_example() -> None:
    contrast = contrast_layers(LOGITS, EXITS, 1.0)
    close(contrast.divergences, [0.060208, 0.273282])
    assert contrast.chosen.tolist() == [1]
    cut = torch.where(plausible(LOGITS, 0.1), contrast.logits, -INF)
    close(cut, [2.271216, -1.228784, 0.271216, -INF, -INF])


def test_the_released_direction_chooses() -> None:
    """The Jensen-Shannon divergence would choose the first exit."""
    logits = torch.tensor([[0.4, -1.7, 1.1, -2.7, -4.5]])
    exits = torch.tensor([[[1.1, 4.4, 2.8, 2.3, 0.6], [3.8, -3.9, -2.4, -0.1, -2.2]]])
    contrast = contrast_layers(logits, exits, 1.0)
    close(contrast.divergences, [0.539051, 0.823483])
    assert contrast.chosen.tolist() == [1]


def naive(logits: list[float], exits: list[list[float]], weight: float, beta: float) -> list[float]:
    """The formula of one row, in double precision, a number at a time."""

    def probabilities(values: list[float]) -> list[float]:
        powers = [math.exp(value - max(values)) for value in values]
        return [power / sum(powers) for power in powers]

    def divergence(first: list[float], second: list[float]) -> float:
        return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True) if p > 0)

    last = probabilities(logits)
    best, chosen = -INF, last
    for values in exits:
        early = probabilities(values)
        middle = [(p + q) / 2 for p, q in zip(last, early, strict=True)]
        distance = (divergence(middle, last) + divergence(middle, early)) / 2
        if distance > best:
            best, chosen = distance, early
    return [
        math.log(p) - weight * math.log(q) if value >= max(logits) + math.log(beta) else -INF
        for value, p, q in zip(logits, last, chosen, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 40, generator=generator)
    exits = 3 * torch.randn(5, 7, 40, generator=generator)
    mixed = torch.where(plausible(logits, 0.05), contrast_layers(logits, exits, 0.7).logits, -INF)
    expected = [
        naive(row.double().tolist(), early.double().tolist(), 0.7, 0.05)
        for row, early in zip(logits, exits, strict=True)
    ]
    torch.testing.assert_close(mixed, torch.tensor(expected), atol=1e-4, rtol=1e-5)


def test_ties_extremes_and_banned_tokens() -> None:
    same = contrast_layers(LOGITS, torch.cat([EXITS, EXITS], dim=1), 1.0)
    assert same.chosen.tolist() == [1]
    far = contrast_layers(LOGITS * 100, EXITS * 100, 1.0)
    assert far.divergences.isfinite().all()
    assert far.logits.isfinite().all()
    banned = torch.cat([LOGITS, torch.full((1, 1), -INF)], dim=1)
    early = torch.cat([EXITS, torch.full((1, 2, 1), -INF)], dim=2)
    wider = contrast_layers(banned, early, 1.0)
    torch.testing.assert_close(wider.logits[:, :-1], same.logits)
    assert wider.logits[0, -1] == -INF
    assert wider.chosen.tolist() == [1]


def test_named_exits() -> None:
    assert candidates("low", 32, tied=False) == tuple(range(0, 16, 2))
    assert candidates("high", 32, tied=False) == tuple(range(16, 32, 2))
    assert candidates("low", 28, tied=True) == tuple(range(2, 14, 2))
    assert candidates("high", 5, tied=True) == (4,)
    assert candidates("low", 5, tied=False) == (0, 2)
    assert candidates("low", 60, tied=False) == tuple(range(0, 20, 2))
    assert candidates("high", 60, tied=False) == tuple(range(40, 60, 2))
    config = AutoConfig.for_model("llava", **families.FAMILIES["llava"].config)
    assert vlmfix.DoLa().resolve(config, None).exits == (0, 2)
    config.tie_word_embeddings = True
    assert vlmfix.DoLa().resolve(config, None).exits == (2,)
    assert vlmfix.DoLa(exits=[3, 0]).resolve(config, None).exits == (0, 3)


def test_refusals(llava: PreTrainedModel) -> None:
    for make, words in (
        (lambda: vlmfix.DoLa(exits="middle"), "'low', 'high'"),
        (lambda: vlmfix.DoLa(exits=()), "one exit at least"),
        (lambda: vlmfix.DoLa(exits=(-1,)), "0 or more"),
        (lambda: vlmfix.DoLa(weight=-1), "from 0 to 100"),
        (lambda: vlmfix.DoLa(normed=1), "true or false"),
        (lambda: vlmfix.DoLa(exits=(1, 5))(llava).__enter__(), "go from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    config = AutoConfig.for_model("llava", **families.FAMILIES["llava"].config)
    config.text_config.num_hidden_layers, config.tie_word_embeddings = 2, True
    with pytest.raises(ValueError, match="leaves none in a model of 2 layers"):
        vlmfix.DoLa().resolve(config, None)


@pytest.mark.parametrize(
    "method",
    [
        vlmfix.DoLa(),
        vlmfix.DoLa(exits=(0, 1, 2), normed=True),
        vlmfix.DoLa(exits=(1, 2, 4), weight=0.5, beta=0.3),
    ],
    ids=["default", "normed", "list"],
)
def test_against_brute_force(method: vlmfix.DoLa, model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    exits = method.resolve(model.config, None).exits
    chosen = []

    def mix(logits: Tensor, states: list[Tensor]) -> Tensor:
        stack = torch.stack([states[int(each)] for each in exits])
        with torch.no_grad():
            early = head(norm(stack) if method.normed else stack).float()
        contrast = contrast_layers(logits[None], early[None], method.weight)
        chosen.append(exits[int(contrast.chosen)])
        return torch.where(plausible(logits, method.beta), contrast.logits[0], -INF)

    expected = layer_reference.answers(model, family, inputs, mix)
    method.reset_edit_stats()
    with method(model):
        got = layer_reference.generated(model, inputs)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    details = method.edit_stats().details
    assert details == {f"exit {each}": pytest.approx(chosen.count(each) / len(chosen)) for each in exits}


def test_beams_follow(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 1, 0))
    outputs = []
    for kwargs in ({}, {"use_cache": False}):
        with vlmfix.DoLa(exits=(1, 3, 4), normed=True)(model):
            outputs.append(model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=4, **kwargs))
    assert torch.equal(*outputs)


def test_exit_0_of_tied_embeddings_is_left_out(model: PreTrainedModel) -> None:
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert vlmfix.DoLa().resolve(model.config, None).exits == ((2,) if tied else (0, 2))


def test_a_finished_sequence_chooses_no_more(llava: PreTrainedModel) -> None:
    """The second row ends early, the first goes on: what was chosen is what each alone chooses."""
    for seed in range(20):
        inputs = families.prompt("llava", llava, (1, 1), seed=seed)
        with vlmfix.DoLa(exits=(0, 1), normed=True)(llava):
            output = llava.generate(**inputs, max_new_tokens=8, do_sample=False)
        tokens = output[:, inputs["input_ids"].shape[1] :]
        ends = [int(token) for token in tokens[1, :3] if token not in tokens[0]]
        if ends:
            break
    together, apart = (vlmfix.DoLa(exits=(0, 1), normed=True) for _ in range(2))
    for method, prompts in ((together, [inputs]), (apart, families.split("llava", llava, inputs))):
        with method(llava):
            for each in prompts:
                llava.generate(**each, max_new_tokens=8, do_sample=False, eos_token_id=ends[-1])
    assert together.edit_stats().steps < 16
    assert together.edit_stats().details == apart.edit_stats().details
    assert 0 < together.edit_stats().details["exit 0"] < 1


def test_the_cut_alone_taps_nothing(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    stock = layer_reference.generated(llava, inputs)[0]
    with vlmfix.DoLa(weight=0, beta=0.9)(llava):
        cut = layer_reference.generated(llava, inputs)[0]
    assert torch.equal(cut, torch.where(plausible(stock, 0.9), stock, -INF))
