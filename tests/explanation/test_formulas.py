"""Shares, gains and margins on the numbers of the specification, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vlmfix.explanation.formulas import (
    ANSWER,
    FIRST,
    IMAGE,
    QUESTION,
    SINKS,
    choice,
    group_sums,
    image_entropy,
    kl_divergence,
    phrase_map,
)

WEIGHTS = torch.tensor([[0.40, 0.10, 0.20, 0.10, 0.20], [0.70, 0.05, 0.05, 0.10, 0.10]])


def test_shares_of_attention() -> None:
    groups = torch.tensor([FIRST, IMAGE, SINKS, QUESTION, ANSWER])
    shares = group_sums(WEIGHTS, groups).mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.55, 0, 0.075, 0.125, 0.1, 0.15]))
    assert shares[IMAGE] + shares[SINKS] == pytest.approx(0.2)


def test_entropy_inside_the_image() -> None:
    assert torch.special.entr(WEIGHTS).sum(dim=1).tolist() == pytest.approx([1.470808, 1.009763], abs=1e-6)
    assert image_entropy(WEIGHTS[:, 1:3]).tolist() == pytest.approx([0.918296, 1.0], abs=1e-6)
    assert image_entropy(torch.ones(1)).item() == 0


def test_margins_where_two_answers_part() -> None:
    plain, method = torch.tensor([2, 1.5, 0.2, -1]), torch.tensor([1.2, 1.9, 0.3, -1])
    found = choice(plain, method)
    assert found[:2] == (0, 1)
    assert found[2:] == pytest.approx((0.5, 0.7, 0.151179), abs=1e-6)
    expected = [-0.599724, -1.099724, -2.399724, -3.599724]
    assert plain.log_softmax(dim=0).tolist() == pytest.approx(expected, abs=1e-6)


def test_forbidden_tokens_add_nothing_to_the_divergence() -> None:
    forbidding = torch.tensor([0.0, -math.inf])
    assert kl_divergence(forbidding, torch.tensor([0.5, 0.5]).log()).item() == pytest.approx(math.log(2))


def test_function_words_leave_the_map_of_a_phrase() -> None:
    maps = torch.tensor([[0.4, 0.1, 0.1], [0.05, 0.3, 0.1], [0.1, 0.5, 0.2]])
    torch.testing.assert_close(phrase_map(maps, [False, True, True]), torch.tensor([0.075, 0.4, 0.15]))
    everything = torch.tensor([0.183333, 0.3, 0.133333])
    torch.testing.assert_close(phrase_map(maps, [True] * 3), everything, atol=1e-6, rtol=0)
    torch.testing.assert_close(phrase_map(maps, [False] * 3), everything, atol=1e-6, rtol=0)
