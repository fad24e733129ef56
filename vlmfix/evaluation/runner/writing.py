"""What is answered goes to the disk."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from vlmfix.evaluation.runner.run_store import RunStore
from vlmfix.evaluation.sample import UNREACHED

Batches = Generator[list[dict[str, Any]], None, None]
"""Records, one a draw, batch by batch, as they are made."""


class TooManyErrorsError(RuntimeError):
    """More samples failed than were allowed."""


class Writer:
    """Appends what is answered to a run; each batch is on disk before the next one begins.

    Args:
        run: to append to; whoever made it closes it.
        shard: of this process, for file names.
        max_errors: number of failures after which work stops.
        on_records: called with the records just written.
    """

    def __init__(
        self,
        run: RunStore,
        shard: str,
        *,
        max_errors: int,
        on_records: Callable[[list[dict[str, Any]]], None] = lambda records: None,
    ) -> None:
        self.run = run
        self.shard = shard
        self.max_errors = max_errors
        self.on_records = on_records
        self._failures = 0

    def write(self, records: list[dict[str, Any]]) -> None:
        """Append the records of a batch.

        Raises:
            TooManyErrorsError: more than `max_errors` draws have failed.
            OSError: the disk is full.
        """
        self.run.append(records, self.shard)
        self.on_records(records)
        errors = [record for record in records if record["status"] == "error"]
        failed = [record for record in errors if record["error_type"] != UNREACHED]
        self._failures += len(failed)
        if self._failures > self.max_errors:
            raise TooManyErrorsError(
                f"{self._failures} samples failed, more than the {self.max_errors} that --max-errors allows; "
                f"fix them or allow more. The last one was {failed[-1]['id']}: {failed[-1]['error']} "
                f"({failed[-1]['error_type']})"
            )


def write_down(run: RunStore, shard: str, batches: Batches, **settings: Any) -> None:
    """Append all that is answered to a run.

    Args:
        run: to append to.
        shard: of this process.
        batches: see `Worker.answers`.
        **settings: of `Writer`.

    Raises:
        TooManyErrorsError: too many draws failed.
        OSError: the disk is full.
    """
    writer = Writer(run, shard, **settings)
    with closing(run), closing(batches):
        for records in batches:
            writer.write(records)
