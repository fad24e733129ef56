"""Evaluation jobs from their settings to the report."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.markup import escape

from vlmfix.cli.console import err, out, progress_bar
from vlmfix.cli.loading import load_model
from vlmfix.evaluation.datasets.sources import scene_count
from vlmfix.evaluation.report.collect import COSTS, METRICS, REPORT, gather, publish
from vlmfix.evaluation.report.console_tables import tables
from vlmfix.evaluation.report.export import check_exports, export
from vlmfix.evaluation.runner.config import make_job, read_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.plan import RunPlan, prepare, read_plans
from vlmfix.evaluation.runner.progress import ConsoleProgress
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.worker import TooManyErrorsError
from vlmfix.failures import printable, words

SAMPLES_FAILED = 3
"""Exit code where all was done that could be, and samples have no answer or a task had no data."""


def run_job(given: Mapping[str, Any], config: Path | None, shard: str | None) -> None:
    """Run a job, or this process's share of it, and write its report when all samples are there.

    Args:
        given: settings of the job; None: not given.
        config: job file for what is not given.
        shard: `i/n`; None: as a launcher says.
    """
    if not err.is_terminal:
        datasets.disable_progress_bars()
    settings = read_job(config) if config is not None else {}
    for one, other in (("limit", "limit_images"), ("limit_images", "limit")):
        if given.get(one) is not None:  # one takes the place of the other
            settings.pop(other, None)
    job = make_job(settings | {name: value for name, value in given.items() if value is not None})
    own = Shard.from_environment() if shard is None else Shard.parse(shard)
    quiet = shard is None and own.index > 0  # of workers that were started together, one speaks
    progress = ConsoleProgress(err, quiet=quiet)
    with resumable(quiet=quiet):
        left_out: list[str] = []
        with progress_bar("drawing scenes", scene_count(job.data), quiet=quiet) as advance:
            tasks = prepare(job, advance, left_out.append)
        for why in left_out:
            progress.note(why)
        share_cores(own)
        loaded = load_model(
            job.model,
            device_of(job.device, own),
            job.dtype,
            revision=job.revision,
            allow_missing=job.allow_missing,
        )
        runs = execute(job, tasks, *loaded, own, progress)
        failed = _finish(job.output, runs, quiet=quiet, partial=False)
    for why in left_out:
        progress.note(why)
    if failed or left_out:
        raise SystemExit(SAMPLES_FAILED)


@contextmanager
def resumable(*, quiet: bool) -> Iterator[None]:
    """A job that may be stopped at any time, by Ctrl-C, SIGTERM or too many errors, and gone on with."""
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not quiet:
            command = printable(shlex.join(["vlmfix", *sys.argv[1:]]))
            err.print(
                f"stopped; what was answered is safe. To go on: {command}", soft_wrap=True, markup=False
            )
        raise SystemExit(130) from None
    except TooManyErrorsError as error:
        err.print(f"[bold red]error:[/] {escape(words(error))}", soft_wrap=True)
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def report_again(output: Path, *, trust: bool, exports: Sequence[Path] = ()) -> None:
    """Score the latest job of a folder again and write its report, also of a job that is not finished.

    Args:
        output: the folder.
        trust: whether records and manifests that somebody edited count.
        exports: further files or folders of results, see `vlmfix.evaluation.report.export`.
    """
    check_exports(exports)
    plans = read_plans(output, trust=trust)
    _finish(output, plans, quiet=False, partial=True, trust=trust, exports=exports)


def _finish(
    output: Path,
    runs: Sequence[RunPlan],
    *,
    quiet: bool,
    partial: bool,
    trust: bool = False,
    exports: Sequence[Path] = (),
) -> int:
    """Figures, report and exports, when all samples are there or a partial report was asked for; how many
    samples failed."""
    gathered = gather(runs, trust=trust)
    failed = sum(outcome.counts["failed"] for outcome in gathered.outcomes)
    if gathered.missing and not partial:
        if not quiet:
            out.print(
                f"{gathered.missing} of {gathered.total} samples are left to other workers; the last of them "
                f"writes the report. To see what there is: vlmfix report {output}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        return failed
    comparisons = publish(gathered, output, runs)
    out.print(tables(comparisons, width=out.width))
    out.print(f"{output / REPORT}, {METRICS}, {COSTS}", soft_wrap=True, highlight=False, markup=False)
    for path in exports:
        for written in export(path, comparisons, runs, gathered.outcomes):
            out.print(str(written), soft_wrap=True, highlight=False, markup=False)
    if failed and not quiet:
        err.print(
            f"{failed:,} samples failed and have no answer; the report names the reasons, the same command "
            "tries them again",
            soft_wrap=True,
            highlight=False,
        )
    return failed


def device_of(device: str, shard: Shard) -> str:
    """Each worker of a host has a GPU of its own."""
    if device == "auto" and shard.of > 1 and torch.cuda.is_available():
        return f"cuda:{shard.local % torch.cuda.device_count()}"
    return device


def share_cores(shard: Shard) -> None:
    """Workers of one host that each use all of its cores would slow each other down manyfold."""
    if shard.of > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // shard.of))


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
