"""Who does what in an output folder: one process for each share, and others for those that were given up."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmfix.evaluation.runner.lease import Lease, living
from vlmfix.evaluation.runner.run_store import ResumeError
from vlmfix.evaluation.runner.shard import Shard

REPORT = "report"
"""The lease of the process that writes the report."""
# Seconds between two looks for work that others gave up.
_INTERVAL = 10.0


@contextmanager
def at_work(output: Path, shard: Shard, *, steal: bool) -> Iterator[bool]:
    """Hold a process's share of the work in an output folder.

    Args:
        output: of the job.
        shard: of this process.
        steal: whether it works for others where its own share is at work already.

    Yields:
        Whether it holds its own share.

    Raises:
        ResumeError: its share, or all the work under another number of shares, is at work already.
        OSError: the folder cannot be written.
    """
    lease = Lease.take(output, str(shard))
    if lease is None:
        if not steal:
            raise ResumeError(_refusal(output, shard, str(shard)))
        yield False
        return
    with lease:
        for other in living(output):
            of = other.path.stem.rpartition("-of-")[2]
            if other.path.stem != REPORT and of != str(shard.of):
                raise ResumeError(_refusal(output, shard, other.path.stem))
        yield True


def _refusal(output: Path, shard: Shard, name: str) -> str:
    holder = next((each for each in living(output) if each.path.stem == name), None)
    index, _, of = name.partition("-of-")
    what = "another job" if of == "1" else f"a job on share {index}/{of}"
    help = "wait for it or choose another --output"
    if of not in ("1", str(shard.of)):
        help = f"wait for it, choose another --output, or take a share of its work with --shard i/{of}"
    who = "it is just beginning or ending" if holder is None else str(holder)
    remedy = "" if holder is None else holder.remedy
    return f"{what} is at work in {output} ({who}); {help}{remedy}"


def answer_shares(
    output: Path,
    shard: Shard,
    *,
    held: bool,
    left: Callable[[], Collection[int]],
    answer: Callable[[Shard], None],
    note: Callable[[str], None],
) -> None:
    """Answer all that nobody else is at work on, and wait for the others, who may give up.

    Args:
        output: of the job.
        shard: of this process, which comes first.
        held: whether this process holds its own share.
        left: numbers of the shares with samples that nobody has tried.
        answer: answers what is left of a share.
        note: is told what happens.
    """
    told: list[int] = []
    while missing := left():
        busy = True
        for number in range(shard.of):
            other = Shard((shard.index + number) % shard.of, shard.of)
            if other.index not in missing:
                continue
            if number == 0 and held:
                answer(other)
                busy = False
                continue
            lease = Lease.take(output, str(other))
            if lease is not None:
                with lease:
                    if other.index in left():  # else its worker has just ended
                        note(f"takes over what is left of share {other.index}/{other.of}")
                        answer(other)
                busy = False
        if busy:
            if told != (waits := sorted(missing)):
                shares = ", ".join(f"{index}/{shard.of}" for index in waits)
                note(f"waits for the workers on {shares}, to take over what they leave")
                told = waits
            time.sleep(_INTERVAL)
