"""Answers that wait for the model, and which of them it makes together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from vlmfix.serve.job import Row

WINDOW = 0.005
"""Seconds for which an answer waits for others to be decoded with it."""
_RATIO = 1.25
_CLOSE = 64


class Waiting:
    """A queue in order of arrival, from which answers under the same plan, to prompts of about the same
    length, are taken together.

    Args:
        batch_size: answers at most.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._changed = threading.Condition()
        self._rows: list[Row] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Sequence[Row]) -> None:
        """Add answers."""
        with self._changed:
            self._rows.extend(rows)
            self._changed.notify_all()

    def close(self) -> None:
        """Let `take` give what waits, and then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[Row]:
        """The next batch, as soon as there is one; [] after `close`.

        It has the oldest answer, and waits for others for a few milliseconds from its arrival.
        """
        with self._changed:
            while True:
                self._rows = [row for row in self._rows if not row.job.cancelled]
                if not self._rows:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                batch = self._batch()
                may_grow = batch[0].job.steps and len(batch) < self._batch_size and not self._closed
                left = batch[0].arrived + WINDOW - time.monotonic()
                if may_grow and left > 0:
                    self._changed.wait(left)
                    continue
                chosen = set(map(id, batch))
                self._rows = [row for row in self._rows if id(row) not in chosen]
                return batch

    def _batch(self) -> list[Row]:
        oldest = self._rows[0]
        if not oldest.job.steps:
            return [oldest]
        batch: list[Row] = []
        shortest = longest = oldest.job.prompt_tokens
        for row in self._rows:
            if len(batch) == self._batch_size:
                break
            length = row.job.prompt_tokens
            low, high = min(shortest, length), max(longest, length)
            if _alike(oldest, row) and high <= max(low * _RATIO, low + _CLOSE):
                batch.append(row)
                shortest, longest = low, high
        return batch


def _alike(one: Row, other: Row) -> bool:
    """Whether two answers may be decoded together: methods see prompts with and without pictures apart."""
    return (
        other.job.steps
        and one.job.plan.key == other.job.plan.key
        and bool(one.job.conversation.pictures) == bool(other.job.conversation.pictures)
    )
