"""Progress of a job: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

# Without a terminal, a line is written so often, in seconds.
_INTERVAL = 60.0


class ConsoleProgress:
    """Progress with samples per second, remaining time and the running metric.

    Args:
        console: a terminal gets a bar, anything else a line a minute.
        quiet: show nothing, as workers beside the first one do.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._progress: Progress | None = None
        self._bar: TaskID | None = None
        self._title = self._running = ""
        self._begun = False
        self._total = self._done = self._new = self._failed = 0
        self._scores: list[float] = []
        self._start = self._told = 0.0

    def note(self, text: str) -> None:
        """Something that the user should know."""
        if not self.quiet:
            self.console.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True, highlight=False)

    def begin(self, title: str, running: str, total: int, done: int) -> None:
        """A run begins, of which `done` samples are there; `running` names the mean score of its samples."""
        self._title, self._running, self._total, self._done = title, running, total, done
        self._begun = True
        self._new, self._failed, self._scores = 0, 0, []
        self._start = self._told = time.monotonic()
        if self.quiet:
            return
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[running]}"),
                console=self.console,
                transient=True,
            )
            self._bar = self._progress.add_task(
                escape(title), total=total, completed=done, speed="", running=""
            )
            self._progress.start()
        else:
            self._say(f"{done} of {total} samples are there" if done else f"{total} samples")

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Records were written, and the successful ones have these scores."""
        self._new += len(records)
        self._failed += sum(record["status"] == "error" for record in records)
        self._scores += scores
        if self._progress is not None and self._bar is not None:
            self._progress.update(
                self._bar, completed=self._done + self._new, speed=self._speed(), running=self._mean()
            )
        elif not self.quiet and time.monotonic() - self._told > _INTERVAL:
            self._told = time.monotonic()
            self._say(self._status())

    def end(self) -> None:
        """The run is over."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._begun and not self.quiet:
            self._say(self._status())
        self._begun = False

    def _say(self, text: str) -> None:
        self.console.print(f"{escape(self._title)}: {text}", soft_wrap=True, highlight=False)

    def _status(self) -> str:
        failed = f"{self._failed} failed" if self._failed else ""
        parts = (f"{self._done + self._new} of {self._total}", failed, self._speed(), self._mean())
        return ", ".join(filter(None, parts))

    def _speed(self) -> str:
        seconds = time.monotonic() - self._start
        return f"{self._new / seconds:.1f} samples/s" if seconds > 0 else ""

    def _mean(self) -> str:
        mean = sum(self._scores) / len(self._scores) if self._scores else 0.0
        return f"{self._running} {mean:.1%}" if self._scores else "nothing answered"
