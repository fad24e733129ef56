"""KL of edited against base distributions: worked examples, sums, and exactness on models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from vlmfix.engine.kl import Divergence, divergence
from vlmfix.engine.stats import Counts, Sums
from vlmfix.methods.logits.base import contrast, plausible

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
BRANCH = torch.tensor([[1.5, 1.2, -0.5, -1.0, 0.0]])


def cut(logits: Tensor) -> Tensor:
    return torch.where(plausible(LOGITS, 0.1), logits, -torch.inf)


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        (cut(contrast(LOGITS, BRANCH, 1.0)), [0.096817, 0.034911, 0.0]),
        (cut(LOGITS), [0.034911, 0.034911, 0.0]),
        (LOGITS, [0.0, 0.0, 0.0]),
        (LOGITS + 3, [0.0, 0.0, 0.0]),
    ],
    ids=["contrast", "cut", "nothing", "constant"],
)
def test_worked_examples(edited: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(divergence(LOGITS, edited), torch.tensor([expected]), atol=1e-6, rtol=0)


def test_the_likeliest_token_changes() -> None:
    edited = torch.tensor([[2.0, 2.144501, 0.7289, -torch.inf, -torch.inf]])
    assert divergence(LOGITS, edited)[0, 2] == 1


def test_equals_sums_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    base, edited = 3 * torch.randn(2, 5, 30, generator=generator)
    base[:, 4] = edited[:, 4] = -torch.inf  # ruled out by the model itself
    edited[:3] = edited[:3].masked_fill(edited[:3] < 0, -torch.inf)
    for row, found in zip(
        zip(base.double(), edited.double(), strict=True), divergence(base, edited), strict=True
    ):
        p, q = (each.exp() / each.exp().sum() for each in row)
        kl = sum(float(q[v]) * math.log(float(q[v] / p[v])) for v in range(30) if q[v] > 0)
        left = sum(float(p[v]) for v in range(30) if q[v] > 0)
        assert found.tolist() == pytest.approx(
            [kl, -math.log(left), float(p.argmax() != q.argmax())], abs=1e-5
        )


def test_sums_are_merged() -> None:
    first, second = Divergence(1.0, 0.5, 0.75, 1, 4), Divergence(0.5, 0.0, 0.25, 0, 2)
    assert first.merged(second) == second.merged(first) == Divergence(1.5, 0.5, 0.75, 1, 6)
    assert first.merged(second).figures == {
        "argmax_changed": 1 / 6,
        "kl_mean": 0.25,
        "kl_max": 0.75,
        "kl_cut": 0.5 / 6,
        "kl_steps": 6,
    }
    assert set(Divergence().figures.values()) == {None}
    assert Divergence(kl_steps=3).is_still
    assert not Divergence().is_still
    assert not first.is_still


def test_sequences_that_do_not_count() -> None:
    """Row 1 ends after its first step, row 2 is skipped."""
    counts = Counts(3, 4, torch.device("cpu"))
    for step in range(2):
        counts.add(None, torch.ones(3, dtype=torch.long), 1)
        counts.divergence.compare(LOGITS.repeat(3, 1), cut(LOGITS).repeat(3, 1))
        alive, taken = torch.tensor([True, step == 0, True]), torch.tensor([True, True, False])
        counts.end_step(alive, taken, is_prefill=step == 0)
    sums = counts.close({})
    assert [row.divergence.kl_steps for row in sums.latest] == [2, 1, 0]
    total = Sums()
    total.add(sums)
    total.add(sums)
    edit_stats = total.edit_stats(heads=False)
    assert (edit_stats.kl_steps, edit_stats.layers_edited, edit_stats.site_share) == (6, [], 1.0)
    assert edit_stats.kl_mean == pytest.approx(0.034911, abs=1e-6)
    assert edit_stats.kl_cut == pytest.approx(0.034911, abs=1e-6)


def test_exact_at_every_step(llava: PreTrainedModel) -> None:
    """Against the model's own logits after the same tokens, sequence by sequence."""
    inputs = families.prompt("llava", llava, (1, 1))
    method = vlmfix.M3ID(decay=0.5, beta=0.3)
    kwargs = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with method(llava):
        output = llava.generate(**inputs, **kwargs)
    added = output.sequences[:, inputs["input_ids"].shape[1] : -1]
    whole = {
        **inputs,
        "input_ids": output.sequences[:, :-1],
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(added)], dim=1),
    }
    with torch.no_grad():
        base = llava(**whole).logits[:, -5:].float()
    moved = divergence(base.flatten(0, 1), torch.stack(output.logits, dim=1).flatten(0, 1)).view(2, 5, 3)
    for row, found in zip(moved, method.latest_edit_stats(), strict=True):
        expected = (float(row[:, 0].sum()), float(row[:, 1].sum()), float(row[:, 0].max()))
        assert found.divergence[:3] == pytest.approx(expected, rel=1e-3)
        assert found.divergence[3:] == (int(row[:, 2].sum()), 5)
    edit_stats = method.edit_stats()
    assert edit_stats.kl_mean == pytest.approx(float(moved[..., 0].mean()), rel=1e-3)
    assert edit_stats.argmax_changed == pytest.approx(float(moved[..., 2].mean()))


def test_an_edit_that_moves_nothing_warns(llava: PreTrainedModel) -> None:
    method = vlmfix.BaselineSharpen(c=1 + 2e-5, beta=0.0)
    message = r"BaselineSharpen edited \d+ of 2 sites in 2 steps of 1 sequences, none by more than \S+ nats"
    with method(llava), pytest.warns(vlmfix.InactiveMethodWarning, match=message):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


def test_methods_that_do_not_say_what_logits_are_know_nothing(llava: PreTrainedModel) -> None:
    method = vlmfix.VHR()
    with method(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)
    assert method.edit_stats().kl_mean is None
    assert method.edit_stats().layers_edited
