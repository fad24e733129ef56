"""Tests of a worker whose long answers are written together with those of the next batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmfix
from tests.support import jobs
from vlmfix.engine.running_batch import RunningBatch
from vlmfix.evaluation.runner.run_store import RunStore
from vlmfix.evaluation.sample import Sample

LONG = jobs.PROTOCOL.with_(max_new_tokens=40)


@pytest.fixture
def run(tmp_path: Path) -> RunStore:
    return jobs.start(tmp_path / "run")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """A short and a long question about each of seven pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    return jobs.samples(folder, 7, ("Is there a dog in the image?", "Describe the image."))


@pytest.fixture(scope="module")
def expected(loaded: tuple[Any, Any], asked: list[Sample]) -> list[str]:
    """What the library answers one by one."""
    return [vlmfix.generate(*loaded, each.image, each.prompt, max_new_tokens=40) for each in asked]


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sequences of batches that were joined."""
    seen: list[tuple[int, int]] = []
    take_in = RunningBatch.take_in

    def watched(batch: RunningBatch, other: RunningBatch) -> bool:
        sizes = batch.left, other.left
        joined = take_in(batch, other)
        seen.extend([sizes] if joined else [])
        return joined

    monkeypatch.setattr(RunningBatch, "take_in", watched)
    return seen


def failing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, when: Callable[[RunningBatch], bool], times: int = 1
) -> None:
    """Let a step fail, so often."""
    step, failed = RunningBatch.step, list[int]()

    def raising(batch: RunningBatch) -> None:
        if len(failed) < times and when(batch):
            failed.append(batch.steps)
            raise error
        step(batch)

    monkeypatch.setattr(RunningBatch, "step", raising)


def check(run: RunStore, asked: list[Sample], expected: list[str]) -> list[dict[str, Any]]:
    """Each sample is answered once, as expected."""
    found = jobs.answered(run, jobs.draws(asked))
    records = jobs.records(run.path)
    assert len(records) == len(asked)
    assert [found[each.id, 0]["text"].strip() for each in asked] == expected
    return records


@pytest.mark.parametrize("names", [(), ("var",), ("vcd",)])
def test_answers_are_those_of_the_library(
    names: tuple[str, ...],
    loaded: tuple[Any, Any],
    asked: list[Sample],
    run: RunStore,
    joins: list[tuple[int, int]],
) -> None:
    methods = [vlmfix.make_method(name) for name in names]
    alone = []
    for sample in asked:
        answer = vlmfix.generate(*loaded, sample.image, sample.prompt, method=list(names), max_new_tokens=40)
        alone.append(answer)
    jobs.worker(loaded, methods, protocol=LONG, batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    records = check(run, asked, alone)
    assert joins[0] == (2, 2)
    assert len(joins) > 1
    for record in records:
        # One a token, and of the prompt less, as questions about one image share its reading.
        assert record["forwards_per_token"] == pytest.approx(2 if names == ("vcd",) else 1, rel=0.05)
        assert record["time_decode"] > 0
        for name in names:
            assert record["method_info"][name]["steps"] == record["n_new_tokens"]
    one_by_one = jobs.start(run.path.parent / "one by one")
    jobs.worker(loaded, methods, protocol=LONG, batch_size=1).work(
        one_by_one, jobs.draws(asked), max_errors=0
    )
    counts = ("steps", "steps_edited", "edited", "eligible", "skipped")
    did = [
        {
            record["id"]: [info[name] for info in record["method_info"].values() for name in counts]
            for record in each
        }
        for each in (records, jobs.records(one_by_one.path))
    ]
    assert did[0] == did[1]


def test_margins_are_those_of_their_questions(
    loaded: tuple[Any, Any], asked: list[Sample], run: RunStore, joins: list[tuple[int, int]]
) -> None:
    margins = []
    for size in (4, 1):
        own = jobs.start(run.path.parent / f"{size}")
        worker = jobs.Writer(*loaded, (), LONG, lambda *_: {}, size, answer_ids=((3,), (4,)))
        worker.work(own, jobs.draws(asked), max_errors=0)
        margins.append({record["id"]: record["margin"] for record in jobs.records(own.path)})
    assert len(joins) > 1
    assert margins[0] == pytest.approx(margins[1], abs=2e-4)


def test_an_error_of_a_batch_in_flight_loses_no_answer(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    joins: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, RuntimeError("index out of range"), lambda batch: len(batch.shares) > 1)
    jobs.worker(loaded, protocol=LONG, batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    records = check(run, asked, expected)
    # Those of the two batches one by one, of which not even the short answers were written down.
    assert sorted(record["batch_size"] for record in records)[:8] == [1] * 8
    assert joins[0] == (2, 2)


def test_want_of_memory_for_batches_in_flight_halves_them(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    failing(monkeypatch, error, lambda batch: len(batch.shares) > 1)
    worker = jobs.worker(loaded, protocol=LONG, batch_size=4)
    worker.work(run, jobs.draws(asked), max_errors=0)
    assert worker.batch_size == 2
    assert {record["batch_size"] for record in check(run, asked, expected)} == {2}


def test_want_of_memory_at_the_very_end_is_mended(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When no batch is left to begin, and the last answers are being written."""
    failing(monkeypatch, MemoryError(), lambda batch: batch.steps == 12, times=2)
    worker = jobs.worker(loaded, protocol=LONG, batch_size=16)
    worker.work(run, jobs.draws(asked), max_errors=0)
    check(run, asked, expected)


def test_a_stop_leaves_what_has_ended(
    loaded: tuple[Any, Any],
    asked: list[Sample],
    expected: list[str],
    run: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        failing(patched, KeyboardInterrupt(), lambda batch: len(batch.shares) > 2)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            jobs.worker(loaded, protocol=LONG, batch_size=4).work(run, jobs.draws(asked), max_errors=0)
    done = run.read({draw.identity: draw.key for draw in jobs.draws(asked)}).done
    left = [draw for draw in jobs.draws(asked) if draw.identity not in done]
    jobs.worker(loaded, protocol=LONG, batch_size=4).work(run, left, max_errors=0)
    check(run, asked, expected)
