"""Progress of a job: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
)

# Without a terminal, a line is written so often, in seconds.
_INTERVAL = 60.0


class ConsoleProgress:
    """Progress of the runs that are at work: samples per second, remaining time and the running metric.

    Args:
        console: a terminal gets a bar a run, anything else a line a minute.
        quiet: show nothing, as workers beside the first one do.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._runs: list[ShownRun] = []
        self._bars: Progress | None = None
        self._start = self._moved = 0.0

    def note(self, text: str) -> None:
        """Something that the user should know."""
        if not self.quiet:
            self.console.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True, highlight=False)

    def begin(self, title: str, running: str, total: int, done: int) -> ShownRun:
        """A run begins, of which `done` samples are there; `running` names the mean score of its samples."""
        if all(run.is_over for run in self._runs):
            self._runs, self._start = [], time.monotonic()
            self._moved = self._start
        run = ShownRun(self, title, running, total, total - done)
        self._runs.append(run)
        if self.quiet:
            return run
        if self.console.is_terminal:
            run.bar = self._with_bars().add_task(
                escape(title), total=total, completed=done, speed="", remaining="", running=""
            )
        else:
            run.say(f"{done} of {total} samples are there" if done else f"{total} samples")
        return run

    def seconds(self) -> float:
        """Those since any run wrote records before: they are of the run that does so now."""
        before, self._moved = self._moved, time.monotonic()
        return self._moved - before

    def show(self, run: ShownRun) -> None:
        """Move the bar of a run."""
        if self._bars is not None and run.bar is not None:
            new, left = (
                sum(counts) for counts in zip(*((one.new, one.left) for one in self._runs), strict=True)
            )
            # Runs that take turns end at about the same time.
            remaining = timedelta(seconds=round((self._moved - self._start) * left / new))
            self._bars.update(
                run.bar,
                completed=run.total - run.left,
                speed=run.speed(),
                remaining=str(remaining),
                running=run.mean(),
            )

    def hide(self, run: ShownRun) -> None:
        """Take away the bar of a run that is over."""
        if self._bars is not None and run.bar is not None:
            if all(one.is_over for one in self._runs):
                self._bars.stop()
                self._bars = None
            else:
                self._bars.remove_task(run.bar)

    @property
    def bars(self) -> list[Task]:
        """What is shown on a terminal now."""
        return [] if self._bars is None else self._bars.tasks

    def _with_bars(self) -> Progress:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[remaining]}", style="progress.remaining"),
                TextColumn("{task.fields[running]}"),
                console=self.console,
                transient=True,
            )
            self._bars.start()
        return self._bars


class ShownRun:
    """One run.

    Args:
        owner: shows it beside others.
        title: of it.
        running: what the mean score of its samples is called.
        total: number of its samples.
        left: those that are not there.
    """

    def __init__(self, owner: ConsoleProgress, title: str, running: str, total: int, left: int) -> None:
        self.total, self.left, self.new = total, left, 0
        self.bar: TaskID | None = None
        self.is_over = False
        self._owner, self._title, self._running = owner, title, running
        self._failed = 0
        self._scores: list[float] = []
        self._seconds = 0.0
        self._told = time.monotonic()

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Records were written, and the successful ones have these scores."""
        self.new += len(records)
        self.left -= len(records)
        self._failed += sum(record["status"] == "error" for record in records)
        self._scores += scores
        self._seconds += self._owner.seconds()
        if self.bar is not None:
            self._owner.show(self)
        elif time.monotonic() - self._told > _INTERVAL:
            self._told = time.monotonic()
            self.say(self._status())

    def end(self) -> None:
        """The run is over."""
        if not self.is_over:
            self.is_over = True
            self._owner.hide(self)
            self.say(self._status())

    def say(self, text: str) -> None:
        """Write a line about it."""
        if not self._owner.quiet:
            self._owner.console.print(f"{escape(self._title)}: {text}", soft_wrap=True, highlight=False)

    def speed(self) -> str:
        """Samples in a second of its own, without those of other runs."""
        return f"{self.new / self._seconds:.1f} samples/s" if self._seconds > 0 else ""

    def mean(self) -> str:
        """The running metric."""
        mean = sum(self._scores) / len(self._scores) if self._scores else 0.0
        return f"{self._running} {mean:.1%}" if self._scores else "nothing answered"

    def _status(self) -> str:
        failed = f"{self._failed} failed" if self._failed else ""
        done = self.total - self.left
        return ", ".join(filter(None, (f"{done} of {self.total}", failed, self.speed(), self.mean())))
