"""A run at work: what is left of it, where its records go, and who is shown how far it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vlmfix.evaluation.runner.host import Request
from vlmfix.evaluation.runner.start import ActiveRun
from vlmfix.evaluation.runner.writing import Writer


class RunProgress(Protocol):
    """Is told what happens in a run, to show it."""

    def advance(self, records: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> None:
        """Records were written, and the successful ones have these scores."""

    def end(self) -> None:
        """The run is over."""


class Progress(Protocol):
    """Is told what happens, to show it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, title: str, running: str, total: int, done: int) -> RunProgress:
        """A run begins, of which `done` samples are there; `running` names the mean score of its samples.
        Others may be at work at the same time."""


class BegunRun:
    """A run at work.

    Args:
        active: the run.
        request: what is left of it.
        shard: of this process, for file names.
        total: samples of the share that is answered, with those that are there.
        max_errors: see `Writer`.
    """

    def __init__(self, active: ActiveRun, request: Request, shard: str, total: int, max_errors: int) -> None:
        self.request = request
        self._active = active
        self._total = total
        self._left = len(request.draws)
        self._writer = Writer(active.run, shard, max_errors=max_errors, on_records=self._advance)
        self._shown: RunProgress | None = None

    def show(self, progress: Progress) -> None:
        """Show from now on how far it is."""
        plan = self._active.plan
        title = f"{plan.task.name} · {plan.variant.label}"
        self._shown = progress.begin(title, plan.task.running, self._total, self._total - self._left)

    def write(self, records: list[dict[str, Any]]) -> None:
        """Write down a batch; see `Writer.write`. With the last one the run ends."""
        self._writer.write(records)
        if not self._left:
            self.end()

    def end(self) -> None:
        """Close it, at its end or before."""
        self._active.run.close()
        if self._shown is not None:
            self._shown.end()
            self._shown = None

    def _advance(self, records: list[dict[str, Any]]) -> None:
        self._left -= len(records)
        if self._shown is not None:
            self._shown.advance(records, [record["score"] for record in records if "score" in record])
