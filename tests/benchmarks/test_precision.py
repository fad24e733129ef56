"""The deviation of half precision: by hand, and from end to end."""

from __future__ import annotations

import math

import pytest
import torch

import vlmfix
from benchmarks import precision
from benchmarks.answers import Setting, Split
from benchmarks.effects import GREEDY


def test_deviation() -> None:
    """Half of the probability moves in one step, none in the next; steps after the end do not count."""
    logits = torch.tensor([[[0.0, -torch.inf], [0.0, 0.0], [9.0, 0.0]]])
    half = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [0.0, 9.0]]])
    found = precision.deviation(logits, half, torch.tensor([[True, True, False]]))
    assert found == (pytest.approx(0.25), pytest.approx(0.5), 1.0)
    other = precision.deviation(logits[:, 2:], half[:, 2:], torch.tensor([[True]]))
    assert other == (pytest.approx(math.tanh(4.5)), pytest.approx(math.tanh(4.5)), 0.0)


@pytest.mark.slow
def test_half_precision_reads_what_float32_wrote() -> None:
    models = [vlmfix.load("tiny-llava", dtype=dtype)[0] for dtype in ("float32", "float32", "bfloat16")]
    processor = vlmfix.load("tiny-llava")[1]
    split = Split("test", 7, 2)
    for setting in (GREEDY, Setting("vhr", {"num_last_layers": 3, "head_scale": 2.0})):
        same, half = precision.measure(models, processor, split, setting, 8)
        assert (same.moved, same.agreement) == (pytest.approx(0, abs=1e-6), 1.0)
        assert 1e-5 < half.moved < 0.05
        assert half.moved <= half.largest
