"""Which answers are decoded together, and when."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

import vlmfix.serve.waiting
from vlmfix.serve.job import Row
from vlmfix.serve.waiting import Waiting


def row(plan: str = "greedy", length: int = 100, *, steps: bool = True, pictures: int = 1) -> Row:
    job: Any = SimpleNamespace(
        plan=SimpleNamespace(key=plan),
        prompt_tokens=length,
        steps=steps,
        cancelled=False,
        conversation=SimpleNamespace(pictures=[None] * pictures),
    )
    return Row(job, 0, 0)


def batches(*rows: Row, size: int = 4) -> list[list[Row]]:
    waiting = Waiting(size)
    waiting.put(rows)
    waiting.close()
    found = []
    while batch := waiting.take():
        found.append(batch)
    return found


def test_alike_means_plan_length_and_pictures() -> None:
    first, other, same, text, search, again = (
        row(),
        row("var"),
        row(length=160),
        row(pictures=0),
        row(steps=False),
        row(length=1000),
    )
    assert batches(first, other, same, text, search, again) == [
        [first, same],
        [other],
        [text],
        [search],
        [again],
    ]
    near = [row(length=length) for length in (1000, 1249, 1251, 801, 990)]
    assert batches(*near) == [near[:2], near[2:3], near[3:]]


def test_a_batch_has_a_size_and_the_oldest_goes_first() -> None:
    rows = [row("var" if number % 2 else "vcd") for number in range(10)]
    assert batches(*rows) == [rows[0:8:2], rows[1:9:2], rows[8:9], rows[9:]]


def test_who_left_is_left_out() -> None:
    rows = [row(), row(), row()]
    rows[1].job.cancelled = True
    assert batches(*rows) == [[rows[0], rows[2]]]


def test_an_answer_waits_for_others_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlmfix.serve.waiting, "WINDOW", 1.0)  # on a busy machine a thread starts late
    waiting = Waiting(2)
    first, second, third = row(), row(), row()
    waiting.put([first])
    timer = threading.Timer(0.01, waiting.put, [[second]])
    timer.start()
    began = time.monotonic()
    assert waiting.take() == [first, second]  # a full batch waits no longer
    waiting.put([third])
    assert waiting.take() == [third]
    assert third.arrived + 1.0 <= time.monotonic() < began + 20
    timer.join()
