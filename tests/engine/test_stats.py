"""Counters of a run: sites and sizes of sequences that are alive and that the method takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

import vlmfix
from tests.support import families
from vlmfix.engine.stats import Counts, Sums


def test_counts_of_listed_heads() -> None:
    """Three listed heads; row 1 ends after its third step, row 0 is edited in its last one in two heads."""
    counts = Counts(2, 4, torch.device("cpu"))
    taken = torch.ones(2, dtype=torch.bool)
    for step in range(5):
        edited = torch.zeros(2, 3, 1, dtype=torch.bool)
        edited[0, :2] = step == 4
        counts.add(2, edited, 3)
        counts.end_step(torch.tensor([True, step < 3]), taken, is_prefill=step == 0)
    edit_stats = counts.close({}).edit_stats(heads=True)
    assert edit_stats.head_share == pytest.approx(2 / 24)
    assert (edit_stats.steps, edit_stats.steps_edited, edit_stats.rows_touched) == (8, 1, 1)
    assert edit_stats.layers_edited == [2]


def test_sizes_are_means_over_sequences_that_count() -> None:
    """Of three sequences one is skipped and one ends; layers may have different numbers of sites."""
    sums = Sums()
    for scale in (1.0, 3.0):
        counts = Counts(3, 2, torch.device("cpu"))
        taken = torch.tensor([True, True, False])
        for alive in (True, False):
            counts.measure({"size": torch.tensor([[1.0, 2], [3, 4], [50, 60]]) * scale})
            counts.measure({"size": torch.tensor([[5.0], [6], [70]]) * scale, "before": torch.ones(3, 1)})
            counts.end_step(torch.tensor([True, alive, True]), taken, is_prefill=alive)
        sums.add(counts.close({}))
    edit_stats = sums.edit_stats(heads=True)
    assert edit_stats.size == pytest.approx((2 * (1 + 2 + 5) + (3 + 4 + 6)) * (1 + 3) / (2 * 9))
    assert edit_stats.details == {"before": 1.0}


def test_nothing_measured_is_no_size() -> None:
    counts = Counts(1, 1, torch.device("cpu"))
    counts.measure({"size": torch.ones(1, 1)})
    counts.end_step(torch.tensor([True]), torch.tensor([False]), is_prefill=True)
    edit_stats = counts.close({}).edit_stats(heads=False)
    assert edit_stats.size is None
    assert edit_stats.details == {}


def test_finished_sequences_do_not_count(llava: PreTrainedModel) -> None:
    """Row 1 ends early, row 0 goes on; the token that ends a sequence still had its step."""
    for seed in range(20):
        inputs = families.prompt("llava", llava, (1, 1), seed=seed)
        with vlmfix.VHR()(llava):
            output = llava.generate(**inputs, max_new_tokens=6, do_sample=False)
        tokens = output[:, inputs["input_ids"].shape[1] :]
        ends = [int(token) for token in tokens[1, :4] if token not in tokens[0]]
        if ends:
            break
    end = ends[-1]
    alive = int((tokens[1] == end).nonzero()[0]) + 1
    assert alive < 6
    method = vlmfix.VHR()
    with method(llava):
        llava.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=end)
    assert method.edit_stats().steps == 6 + alive
    assert method.edit_stats().steps_edited == 6 + alive


def test_a_failed_call_counts_nothing(llava: PreTrainedModel) -> None:
    class Failing(BaseStreamer):
        calls = 0

        def put(self, value: Tensor) -> None:
            self.calls += 1
            if self.calls == 3:
                raise ZeroDivisionError

        def end(self) -> None:
            pass

    method = vlmfix.VHR()
    with method(llava), pytest.raises(ZeroDivisionError):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=3, streamer=Failing())
    assert method.edit_stats().rows == 0
