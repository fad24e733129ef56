"""Sampling: draws of the softmax, the same for a sequence wherever and with whatever it is decoded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from vlmfix.inference import sampling
from vlmfix.inference.sampling import SamplingByRow, SeededSampling, gumbel_noise, seed_of

LOGITS = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -3.0])
DRAWS = 20_000
SEEDS = [seed_of(0, f"sample {number}", 0) for number in range(DRAWS)]


def drawn(seeds: list[int], logits: Tensor = LOGITS, steps: int = 1, **settings: Any) -> Tensor:
    """Tokens of so many steps with the same logits, `(steps, sequences)`."""
    process = SeededSampling(seeds, **{"temperature": 1.0, **settings})
    ids = torch.zeros(len(seeds), 1, dtype=torch.long)
    return torch.stack([process(ids, logits.expand(len(seeds), -1)).argmax(dim=-1) for _ in range(steps)])


def p_value(tokens: Tensor, probabilities: Tensor) -> float:
    """Of the chi-square test that tokens were drawn with these probabilities; zero ones must not occur."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double()
    return float(stats.chisquare(counts[possible], expected / expected.sum() * len(tokens)).pvalue)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_tokens_follow_the_softmax(temperature: float) -> None:
    [tokens] = drawn(SEEDS, temperature=temperature)
    assert p_value(tokens, (LOGITS / temperature).softmax(dim=0)) > 0.001
    assert p_value(tokens, (LOGITS / (1.2 * temperature)).softmax(dim=0)) < 1e-6  # the test can tell


def test_steps_and_neighbouring_tokens_are_independent() -> None:
    first, second = drawn(SEEDS, steps=2)
    probabilities = LOGITS.softmax(dim=0)
    both = (probabilities[:, None] * probabilities).flatten()
    likely = both * DRAWS > 5
    pairs = first * len(LOGITS) + second
    assert p_value(pairs[likely[pairs]], torch.where(likely, both, 0)) > 0.001
    for step in (0, 1, 7):
        noise = gumbel_noise(torch.tensor(SEEDS), step, 3)
        correlations = torch.corrcoef(noise.T) - torch.eye(3)
        assert correlations.abs().max() < 0.03


def test_consecutive_seeds_are_as_good_as_any() -> None:
    [tokens] = drawn(list(range(DRAWS)))
    assert p_value(tokens, LOGITS.softmax(dim=0)) > 0.001


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(torch.arange(500), 0, 400).flatten()
    assert noise.dtype == torch.float64
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue > 0.001


@pytest.mark.parametrize("bits", [0, -1, 1, -(2**63), 2**63 - 1])
def test_noise_is_finite_whatever_the_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_mixed", lambda values: torch.full_like(values, bits))
    assert gumbel_noise(torch.tensor([1]), 0, 4).isfinite().all()


def test_noise_is_the_same_on_all_machines() -> None:
    """SplitMix64 of the seed, then of the token, by Python's integers."""

    def mixed(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    golden = 0x9E3779B97F4A7C15
    seeds = [0, 5, 2**63 - 1]
    for step in (0, 3):
        expected = []
        for seed in seeds:
            key = mixed((seed + golden * (step + 1)) % 2**64)
            bits = [mixed((key + golden * token) % 2**64) for token in (1, 2, 3)]
            expected.append([-math.log(-math.log(((each >> 12) + 0.5) / 2**52)) for each in bits])
        torch.testing.assert_close(
            gumbel_noise(torch.tensor(seeds), step, 3),
            torch.tensor(expected, dtype=torch.float64),
            rtol=1e-12,
            atol=1e-12,
        )


def test_a_batch_draws_what_its_sequences_draw_alone() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    seeds = SEEDS[:40]
    ids = torch.zeros(40, 1, dtype=torch.long)
    together = SeededSampling(seeds, temperature=0.8, top_p=0.9, top_k=50)
    alone = [SeededSampling([seed], temperature=0.8, top_p=0.9, top_k=50) for seed in seeds]
    for _ in range(3):
        scores = together(ids, logits)
        for row, each in enumerate(alone):
            torch.testing.assert_close(each(ids[:1], logits[row : row + 1])[0], scores[row], rtol=0, atol=0)


def test_noise_of_a_token_does_not_depend_on_the_vocabulary() -> None:
    """Padded vocabularies of other runtimes give the same draws."""
    seeds = torch.tensor(SEEDS[:10])
    torch.testing.assert_close(gumbel_noise(seeds, 2, 50), gumbel_noise(seeds, 2, 80)[:, :50], rtol=0, atol=0)


def test_steps_differ_and_a_new_object_begins_anew() -> None:
    steps = drawn(SEEDS[:200], steps=3)
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[1], steps[2])
    assert torch.equal(drawn(SEEDS[:200], steps=3), steps)
    assert not torch.equal(drawn(SEEDS[200:400], steps=3), steps)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {3}),
        ({"top_k": 3}, {0, 3, 4}),
        ({"top_k": 100}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 0.5}, {3}),  # shares: 3 .561, 0 .206, 4 .125, 1 .076, 2 .028, 5 .004
        ({"top_p": 0.8}, {0, 3, 4}),
        ({"top_p": 0.8, "top_k": 2}, {0, 3}),
        ({"top_p": 0.8, "temperature": 3.0}, {0, 1, 3, 4}),  # the temperature goes first
        ({"top_p": 1.0, "top_k": 0}, {0, 1, 2, 3, 4, 5}),
    ],
    ids=str,
)
def test_kept_tokens(settings: dict[str, Any], kept: set[int]) -> None:
    [tokens] = drawn(SEEDS, **settings)
    assert set(tokens.tolist()) == kept
    probabilities = torch.zeros(len(LOGITS), dtype=torch.float64)
    for token in kept:
        probabilities[token] = math.exp(float(LOGITS[token]) / settings.get("temperature", 1.0))
    if len(kept) > 1:
        assert p_value(tokens, probabilities / probabilities.sum()) > 0.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_drawn_from_in_full_precision(dtype: torch.dtype) -> None:
    half = LOGITS.to(dtype)
    before = half.clone()
    assert torch.equal(drawn(SEEDS[:500], half), drawn(SEEDS[:500], half.float()))
    assert torch.equal(half, before)


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = LOGITS.clone()
    logits[3] = -math.inf
    [tokens] = drawn(SEEDS, logits)
    assert p_value(tokens, logits.softmax(dim=0)) > 0.001


def test_seeds_are_told_apart_by_run_sample_and_repeat() -> None:
    seeds = {
        seed_of(run, sample, repeat)
        for run in range(5)
        for sample in ("a", "b", "1/2")
        for repeat in range(5)
    }
    assert len(seeds) == 75
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, "2/3", 4) != seed_of(1, "2", 3)
    assert seed_of(0, "pope/coco/random/17", 0) == 915498382473757162


def test_each_sequence_has_settings_of_its_own() -> None:
    """Those that are drawn get what they would get alone, the greedy ones stay as they are."""
    draws = [(5, 0.7, 1.0), (6, 0.0, 1.0), (7, 0.7, 1.0), (8, 1.3, 0.8), (5, 0.0, 0.5)]
    logits = torch.randn(len(draws), 40, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    together = SamplingByRow(draws)
    alone = [SeededSampling([seed], temperature=t, top_p=p) if t else None for seed, t, p in draws]
    ids = torch.zeros(len(draws), 1, dtype=torch.long)
    for _ in range(3):
        scores = together(ids, logits)
        for row, process in enumerate(alone):
            own = logits[row : row + 1]
            expected = own if process is None else process(ids[:1], own)
            assert torch.equal(scores[row : row + 1], expected)
    assert torch.equal(logits, before)
