"""Gates: their formulas on numbers worked out by hand, and their texts."""

from __future__ import annotations

import math

import pytest
import torch

import vlmfix
from tests.support.methods import ATTACHED
from vlmfix.engine.gate_formulas import (
    blend,
    blend_logits,
    disagreement,
    entropy,
    margin,
    ramp,
    top1,
    uniform,
)
from vlmfix.engine.gates import parse_gate
from vlmfix.evaluation.runner.config import Variant
from vlmfix.methods.grammar import make_methods, parse_settings
from vlmfix.settings import parse_yaml

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])

TEXTS = {
    "always:0.5": vlmfix.Always(0.5),
    "random:0.3": vlmfix.Random(0.3),
    "random:0.3:seed=7": vlmfix.Random(0.3, seed=7),
    "entropy:0.3": vlmfix.Entropy(0.3),
    "entropy:0.1..0.4": vlmfix.Entropy(low=0.1, high=0.4),
    "margin:0.1..0.4:first=0": vlmfix.Margin(0.1, 0.4, first=0),
    "top1:below:1e-05": vlmfix.Top1(1e-5, below=True),
    "image_mass:below:0.1..0.2:first=0.5": vlmfix.ImageMass(0.1, 0.2, below=True, first=0.5),
    "disagreement:1.5": vlmfix.Disagreement(1.5),
}


def test_signals() -> None:
    close = {"atol": 1e-6, "rtol": 0}
    other = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    torch.testing.assert_close(entropy(LOGITS), torch.tensor([0.683503]), **close)
    torch.testing.assert_close(top1(LOGITS), torch.tensor([0.356086]), **close)
    torch.testing.assert_close(margin(LOGITS), torch.tensor([0.592969]), **close)
    torch.testing.assert_close(disagreement(LOGITS, other), torch.tensor([0.814063]), **close)
    banned = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    torch.testing.assert_close(entropy(banned), torch.tensor([0.5]), **close)


def test_shapes() -> None:
    signal = torch.tensor([0.0, 0.1, 0.3, 0.35, 0.5])
    for (low, high, below), expected in {
        (0.1, 0.5, False): [0, 0, 0.5, 0.625, 1],
        (0.1, 0.5, True): [1, 1, 0.5, 0.375, 0],
        (0.0, 0.5, False): [0, 0.2, 0.6, 0.7, 1],  # AdaVBoost at 0.35
        (0.3, 0.3, False): [0, 0, 0, 1, 1],
        (0.3, 0.3, True): [1, 1, 0, 0, 0],
    }.items():
        opening = ramp(signal, low, high, below=below)
        torch.testing.assert_close(opening, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_blends() -> None:
    before, after = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    torch.testing.assert_close(blend(before, after, torch.tensor(0.4)), torch.tensor([0.38, 0.42, 0.2]))
    before, after = torch.randn(2, 3, 1, 5) * 1e3, torch.randn(2, 3, 1, 5) * 1e-3
    mixed = blend(before, after, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert torch.equal(mixed[0], before[0])
    assert torch.equal(mixed[1], after[1])


def test_blends_of_logits() -> None:
    """What is ruled out stays so in a gate that is open at all; a closed one gives back what there was."""
    before = torch.tensor([[2.0, 1.0, 0.0, -math.inf]]).repeat(3, 1)
    after = torch.tensor([[3.0, 0.5, -math.inf, 1.0]]).repeat(3, 1)
    mixed = blend_logits(before, after, torch.tensor([0.5, 0.0, 1.0]))
    assert mixed[0].tolist() == [2.5, 0.75, -math.inf, -math.inf]
    assert torch.equal(mixed[1:], torch.stack([before[1], after[2]]))
    after[:, 2] = -1500.0  # ruled out in the form of this library
    assert blend_logits(before, after, torch.tensor([0.01, 0.5, 0.9]))[:, 2].tolist() == [-1500.0] * 3


def test_random_openings_depend_on_step_token_and_seed_alone() -> None:
    tokens = torch.arange(4000)
    drawn = uniform(tokens, 3, 0)
    assert torch.equal(uniform(tokens.flip(0), 3, 0).flip(0), drawn)
    assert torch.equal(uniform(tokens[7:8], 3, 0), drawn[7:8])
    for step, seed in ((3, 0), (4, 0), (3, 1)):
        share = (uniform(tokens, step, seed) < 0.3).float()
        assert share.mean().item() == pytest.approx(0.3, abs=0.03)
        both = (share * (drawn < 0.3)).mean().item()
        assert both == pytest.approx(0.3 if (step, seed) == (3, 0) else 0.09, abs=0.03)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_read_and_written_alike(text: str) -> None:
    assert parse_gate(text) == TEXTS[text]
    assert str(TEXTS[text]) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("entropy", "it must be a name with numbers, such as entropy:0.3"),
        (0.3, "it must be a name with numbers"),
        ("entropi:0.3", r"unknown 'entropi' \(did you mean 'entropy'\?\)"),
        ("entropy:much", "'much' is no number"),
        ("entropy:1.2", "low is 1.2; it must be a number from 0 to 1"),
        ("entropy:nan", "low is nan; it must be"),
        ("disagreement:0.1..2.5", "high is 2.5; it must be a number from 0 to 2"),
        ("entropy:0.4..0.1", "high is 0.1 and low is 0.4; give them in order"),
        ("entropy:0.3:seed=1", "entropy takes NUMBER, LOW..HIGH or below:..., and first=NUMBER after it"),
        ("always:0.1..0.2", "always takes one number"),
        ("random:0.3:seed=0.5", "seed is 0.5; it must be a whole number"),
    ],
)
def test_texts_that_are_refused(text: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_gate(text)


def test_settings_hold_gates() -> None:
    [chosen] = parse_settings(["pai+vcd"], ["pai.gate=entropy:0.10..0.4", "vcd.gate=disagreement:0.2"])
    pai, vcd = make_methods(chosen)
    assert pai == vlmfix.PAI(gate=vlmfix.Entropy(0.1, 0.4)) != vlmfix.PAI()
    assert pai.parameters["gate"] == "entropy:0.1..0.4"
    assert vlmfix.make_method("vcd", **vcd.parameters) == vcd
    [(name, parameters)] = parse_yaml("adhh: {threshold: 0.2, gate: entropy:0.1..0.4}").items()
    assert Variant.of(name, {name: parameters}).label == "adhh(threshold=0.2, gate=entropy:0.1..0.4)"
    assert "gate" not in vlmfix.PAI().parameters  # as in runs before there were gates
    assert vlmfix.PAI(alpha=0, gate="always:1").is_identity
    assert not vlmfix.PAI(gate="always:0").is_identity


def test_methods_that_take_no_gate() -> None:
    taking = {name for name in ATTACHED if vlmfix.list_methods()[name].takes_gate()}
    stages = {name: vlmfix.list_methods()[name].info.stage for name in ATTACHED}
    assert {stages[name] for name in taking} == {"attention", "steering", "logits", "baseline"}
    excepted = {"eah", "farsight"}  # which edit no new token
    excepted |= {"baseline.random_heads", "baseline.random_directions"}  # which have that of a method
    others = {stages[name] for name in set(ATTACHED) - taking - excepted}
    assert others == {"pruning", "vision", "decoding"}
    with pytest.raises(ValueError, match="what FastV does is something else; leave out gate='always:1'"):
        vlmfix.FastV(gate="always:1")
    with pytest.raises(ValueError, match="fastv has no parameter 'gate'"):
        vlmfix.make_method("fastv", gate="always:1")
    for cls in (vlmfix.PAI, vlmfix.DoLa, vlmfix.VAR):
        with pytest.raises(ValueError, match=f"{cls.__name__} does not compare the logits with those of a"):
            cls(gate="disagreement:0.2")
