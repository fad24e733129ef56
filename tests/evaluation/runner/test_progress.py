"""What is shown of a job at work: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from vlmfix.evaluation.runner import progress
from vlmfix.evaluation.runner.progress import ConsoleProgress

OK, ERROR = {"status": "ok"}, {"status": "error"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a watcher sees."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain(**settings: Any) -> tuple[ConsoleProgress, io.StringIO]:
    written = io.StringIO()
    return ConsoleProgress(Console(file=written, width=40), **settings), written


def test_lines_where_there_is_no_terminal(clock: list[float]) -> None:
    progress, written = plain()
    run = progress.begin("pope · var", "accuracy", 10, 4)
    clock[0] += 2
    run.advance([OK, ERROR], [1.0])
    clock[0] += 2
    run.advance([OK, OK], [1.0, 0.0])
    run.end()
    assert written.getvalue().splitlines() == [
        "pope · var: 4 of 10 samples are there",
        "pope · var: 8 of 10, 1 failed, 1.0 samples/s, accuracy 66.7%",
    ]


def test_a_line_a_minute(clock: list[float]) -> None:
    progress, written = plain()
    run = progress.begin("pope", "accuracy", 10, 0)
    for _ in range(6):
        clock[0] += 25
        run.advance([OK], [1.0])
    assert written.getvalue().splitlines() == [
        "pope: 10 samples",
        "pope: 3 of 10, 0.0 samples/s, accuracy 100.0%",
        "pope: 6 of 10, 0.0 samples/s, accuracy 100.0%",
    ]


def test_each_run_counts_for_itself(clock: list[float]) -> None:
    progress, written = plain()
    for title in ("pope", "vqa"):
        run = progress.begin(title, "accuracy", 1, 0)
        clock[0] += 1
        run.advance([ERROR], [])
        run.end()
    assert written.getvalue().splitlines()[1::2] == [
        f"{title}: 1 of 1, 1 failed, 1.0 samples/s, nothing answered" for title in ("pope", "vqa")
    ]


def test_no_time_has_passed(clock: list[float]) -> None:
    progress, written = plain()
    run = progress.begin("pope", "accuracy", 1, 0)
    run.advance([OK], [0.5])
    run.end()
    assert written.getvalue().splitlines()[-1] == "pope: 1 of 1, accuracy 50.0%"


def test_titles_and_notes_are_no_markup(clock: list[float]) -> None:
    progress, written = plain()
    progress.note("a new run in [/tmp] [red]")
    progress.begin("var(layers=[1, 2]) [/x]", "accuracy", 1, 0).end()
    first, second, third = written.getvalue().splitlines()
    assert first == "note: a new run in [/tmp] [red]"
    assert second.startswith("var(layers=[1, 2]) [/x]: 1 sample")
    assert third.startswith("var(layers=[1, 2]) [/x]: 0 of 1")


def test_a_quiet_watcher_says_nothing(clock: list[float]) -> None:
    progress, written = plain(quiet=True)
    run = progress.begin("pope", "accuracy", 2, 1)
    clock[0] += 100
    run.advance([OK], [1.0])
    progress.note("x")
    run.end()
    assert written.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    written = io.StringIO()
    progress = ConsoleProgress(Console(file=written, width=120, force_terminal=True, _environ={}))
    run = progress.begin("pope · [var]", "accuracy", 4, 1)
    run.advance([OK, ERROR], [0.5])
    run.end()
    progress.begin("vqa", "accuracy", 4, 1).end()
    shown = written.getvalue()
    assert "3/4" in shown
    assert "accuracy 50.0%" in shown
    assert "pope · [var]" in shown
    assert "3 of 4, 1 failed" in shown


def test_a_run_ends_once(clock: list[float]) -> None:
    progress, written = plain()
    run = progress.begin("pope", "accuracy", 4, 0)
    run.end()
    run.end()
    assert len(written.getvalue().splitlines()) == 2


def test_runs_that_take_turns_count_their_own_seconds(clock: list[float]) -> None:
    progress, written = plain()
    greedy, var = (progress.begin(title, "accuracy", 4, 0) for title in ("greedy", "var"))
    for run, seconds in ((greedy, 1), (var, 4)) * 2:
        clock[0] += seconds
        run.advance([OK, OK], [1.0])
    greedy.end()
    var.end()
    assert written.getvalue().splitlines() == [
        "greedy: 4 samples",
        "var: 4 samples",
        "greedy: 4 of 4, 2.0 samples/s, accuracy 100.0%",
        "var: 4 of 4, 0.5 samples/s, accuracy 100.0%",
    ]


def test_bars_of_runs_that_take_turns(clock: list[float]) -> None:
    written = io.StringIO()
    progress = ConsoleProgress(Console(file=written, width=120, force_terminal=True, _environ={}))
    greedy, var = (progress.begin(title, "accuracy", 8, 4) for title in ("greedy", "var"))
    clock[0] += 30
    greedy.advance([OK], [1.0])
    clock[0] += 90
    var.advance([OK], [1.0])
    shown = progress.bars
    assert [each.completed for each in shown] == [5, 5]
    # Of 2 samples in 120 seconds, 6 are left.
    assert [each.fields["remaining"] for each in shown] == ["0:03:30", "0:06:00"]
    greedy.end()
    assert [each.description for each in progress.bars] == ["var"]
    var.end()
    assert progress.bars == []
