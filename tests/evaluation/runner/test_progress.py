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
    progress.begin("pope · var", "accuracy", 10, 4)
    clock[0] += 2
    progress.advance([OK, ERROR], [1.0])
    clock[0] += 2
    progress.advance([OK, OK], [1.0, 0.0])
    progress.end()
    assert written.getvalue().splitlines() == [
        "pope · var: 4 of 10 samples are there",
        "pope · var: 8 of 10, 1 failed, 1.0 samples/s, accuracy 66.7%",
    ]


def test_a_line_a_minute(clock: list[float]) -> None:
    progress, written = plain()
    progress.begin("pope", "accuracy", 10, 0)
    for _ in range(6):
        clock[0] += 25
        progress.advance([OK], [1.0])
    assert written.getvalue().splitlines() == [
        "pope: 10 samples",
        "pope: 3 of 10, 0.0 samples/s, accuracy 100.0%",
        "pope: 6 of 10, 0.0 samples/s, accuracy 100.0%",
    ]


def test_each_run_counts_for_itself(clock: list[float]) -> None:
    progress, written = plain()
    for title in ("pope", "vqa"):
        progress.begin(title, "accuracy", 1, 0)
        clock[0] += 1
        progress.advance([ERROR], [])
        progress.end()
    assert written.getvalue().splitlines()[1::2] == [
        f"{title}: 1 of 1, 1 failed, 1.0 samples/s, nothing answered" for title in ("pope", "vqa")
    ]


def test_no_time_has_passed(clock: list[float]) -> None:
    progress, written = plain()
    progress.begin("pope", "accuracy", 1, 0)
    progress.advance([OK], [0.5])
    progress.end()
    assert written.getvalue().splitlines()[-1] == "pope: 1 of 1, accuracy 50.0%"


def test_titles_and_notes_are_no_markup(clock: list[float]) -> None:
    progress, written = plain()
    progress.note("a new run in [/tmp] [red]")
    progress.begin("var(layers=[1, 2]) [/x]", "accuracy", 1, 0)
    progress.end()
    first, second, third = written.getvalue().splitlines()
    assert first == "note: a new run in [/tmp] [red]"
    assert second.startswith("var(layers=[1, 2]) [/x]: 1 sample")
    assert third.startswith("var(layers=[1, 2]) [/x]: 0 of 1")


def test_a_quiet_watcher_says_nothing(clock: list[float]) -> None:
    progress, written = plain(quiet=True)
    progress.begin("pope", "accuracy", 2, 1)
    clock[0] += 100
    progress.advance([OK], [1.0])
    progress.note("x")
    progress.end()
    assert written.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    written = io.StringIO()
    progress = ConsoleProgress(Console(file=written, width=120, force_terminal=True, _environ={}))
    progress.begin("pope · [var]", "accuracy", 4, 1)
    progress.advance([OK, ERROR], [0.5])
    progress.end()
    progress.begin("vqa", "accuracy", 4, 1)
    progress.end()
    shown = written.getvalue()
    assert "3/4" in shown
    assert "accuracy 50.0%" in shown
    assert "pope · [var]" in shown
    assert "3 of 4, 1 failed" in shown


def test_interrupted_before_a_run_begins() -> None:
    progress, written = plain()
    progress.end()
    assert written.getvalue() == ""


def test_a_run_ends_once(clock: list[float]) -> None:
    progress, written = plain()
    progress.begin("pope", "accuracy", 4, 0)
    progress.end()
    progress.end()
    assert len(written.getvalue().splitlines()) == 2
