"""What is shown of a job at work: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from vlmfix.evaluation.runner import progress
from vlmfix.evaluation.runner.progress import ConsoleWatcher

OK, ERROR = {"status": "ok"}, {"status": "error"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a watcher sees."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain(**settings: Any) -> tuple[ConsoleWatcher, io.StringIO]:
    written = io.StringIO()
    return ConsoleWatcher(Console(file=written, width=40), **settings), written


def test_lines_where_there_is_no_terminal(clock: list[float]) -> None:
    watcher, written = plain()
    watcher.begin("pope · var", "accuracy", 10, 4)
    clock[0] += 2
    watcher.advance([OK, ERROR], [1.0])
    clock[0] += 2
    watcher.advance([OK, OK], [1.0, 0.0])
    watcher.end()
    assert written.getvalue().splitlines() == [
        "pope · var: 4 of 10 items are there",
        "pope · var: 8 of 10, 1 failed, 1.0 items/s, accuracy 66.7%",
    ]


def test_a_line_a_minute(clock: list[float]) -> None:
    watcher, written = plain()
    watcher.begin("pope", "accuracy", 10, 0)
    for _ in range(6):
        clock[0] += 25
        watcher.advance([OK], [1.0])
    assert written.getvalue().splitlines() == [
        "pope: 10 items",
        "pope: 3 of 10, 0.0 items/s, accuracy 100.0%",
        "pope: 6 of 10, 0.0 items/s, accuracy 100.0%",
    ]


def test_each_run_counts_for_itself(clock: list[float]) -> None:
    watcher, written = plain()
    for title in ("pope", "vqa"):
        watcher.begin(title, "accuracy", 1, 0)
        clock[0] += 1
        watcher.advance([ERROR], [])
        watcher.end()
    assert written.getvalue().splitlines()[1::2] == [
        f"{title}: 1 of 1, 1 failed, 1.0 items/s, nothing answered" for title in ("pope", "vqa")
    ]


def test_no_time_has_passed(clock: list[float]) -> None:
    watcher, written = plain()
    watcher.begin("pope", "accuracy", 1, 0)
    watcher.advance([OK], [0.5])
    watcher.end()
    assert written.getvalue().splitlines()[-1] == "pope: 1 of 1, accuracy 50.0%"


def test_titles_and_notes_are_no_markup(clock: list[float]) -> None:
    watcher, written = plain()
    watcher.note("a new run in [/tmp] [red]")
    watcher.begin("var(layers=[1, 2]) [/x]", "accuracy", 1, 0)
    watcher.end()
    first, second, third = written.getvalue().splitlines()
    assert first == "note: a new run in [/tmp] [red]"
    assert second.startswith("var(layers=[1, 2]) [/x]: 1 item")
    assert third.startswith("var(layers=[1, 2]) [/x]: 0 of 1")


def test_a_quiet_watcher_says_nothing(clock: list[float]) -> None:
    watcher, written = plain(quiet=True)
    watcher.begin("pope", "accuracy", 2, 1)
    clock[0] += 100
    watcher.advance([OK], [1.0])
    watcher.note("x")
    watcher.end()
    assert written.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    written = io.StringIO()
    watcher = ConsoleWatcher(Console(file=written, width=120, force_terminal=True, _environ={}))
    watcher.begin("pope · [var]", "accuracy", 4, 1)
    watcher.advance([OK, ERROR], [0.5])
    watcher.end()
    watcher.begin("vqa", "accuracy", 4, 1)
    watcher.end()
    shown = written.getvalue()
    assert "3/4" in shown
    assert "accuracy 50.0%" in shown
    assert "pope · [var]" in shown
    assert "3 of 4, 1 failed" in shown


def test_interrupted_before_a_run_begins() -> None:
    watcher, written = plain()
    watcher.end()
    assert written.getvalue() == ""


def test_a_run_ends_once(clock: list[float]) -> None:
    watcher, written = plain()
    watcher.begin("pope", "accuracy", 4, 0)
    watcher.end()
    watcher.end()
    assert len(written.getvalue().splitlines()) == 2
