"""Evaluation jobs from their settings to the report."""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.markup import escape
from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.cli.console import err, out, progress_bar
from vlmfix.cli.loading import load_model
from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.datasets.sources import scene_count
from vlmfix.evaluation.files.atomic import check_writable
from vlmfix.evaluation.report.collect import COSTS, METRICS, Gathered, gather, publish, write_page
from vlmfix.evaluation.report.collect import REPORT as REPORT_PAGE
from vlmfix.evaluation.report.console_tables import tables
from vlmfix.evaluation.report.export import check_exports, export
from vlmfix.evaluation.report.several_runs import COMPARISON, labelled_by_run
from vlmfix.evaluation.report.trackers import check_trackers, log_report
from vlmfix.evaluation.runner.config import Job, make_job, read_job
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.host import Host, LocalHost
from vlmfix.evaluation.runner.lease import Lease
from vlmfix.evaluation.runner.plan import RunPlan, prepare, read_plans
from vlmfix.evaluation.runner.progress import ConsoleProgress
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.runner.shares import REPORT, at_work
from vlmfix.evaluation.runner.writing import TooManyErrorsError
from vlmfix.failures import printable, words

ENGINES = ("local", "ray")
"""Where the model of a job may be: in this process, or on a Ray cluster."""
SAMPLES_FAILED = 3
"""Exit code where all was done that could be, and samples have no answer or a task had no data."""


def run_job(
    given: Mapping[str, Any],
    config: Path | None = None,
    shard: str | None = None,
    *,
    steal: bool = False,
    engine: str = ENGINES[0],
    address: str | None = None,
    trackers: Sequence[str] = (),
    left_out: list[str] | None = None,
) -> Sequence[Comparison]:
    """Run a job, or this process's share of it, and write its report when all samples are there.

    Args:
        given: settings of the job; None: not given.
        config: job file for what is not given.
        shard: `i/n`; None: as a launcher says.
        steal: whether this process goes on with what others leave.
        engine: where the model is, one of `ENGINES`.
        address: of the Ray cluster; None: as Ray finds it.
        trackers: that receive the report, by name.
        left_out: receives why of several tasks one cannot run, whose data are missing; None: none may be.

    Returns:
        What the report compares; nothing where another process writes it.
    """
    if not err.is_terminal:
        datasets.disable_progress_bars()
    check_trackers(trackers)
    settings = read_job(config) if config is not None else {}
    for one, other in (("limit", "limit_images"), ("limit_images", "limit")):
        if given.get(one) is not None:  # one takes the place of the other
            settings.pop(other, None)
    job = make_job(settings | {name: value for name, value in given.items() if value is not None})
    own = Shard.from_environment() if shard is None else Shard.parse(shard)
    if steal and job.resume == "never":
        raise ValueError("--steal goes on with what others began, which --resume never refuses; drop one")
    _check_engine(engine, address, own, steal=steal)
    quiet = own.is_quiet  # of workers that were started together, one speaks
    progress = ConsoleProgress(err, quiet=quiet)
    check_writable(job.output)
    with resumable(quiet=quiet), at_work(job.output, own, steal=steal) as held:
        if shard is None and own.of > 1:
            progress.note(f"share {own.index}/{own.of}, as the launcher says; --shard 0/1 is all the work")
        with progress_bar("drawing scenes", scene_count(job.data), quiet=quiet) as advance:
            tasks = prepare(job, advance, None if left_out is None else left_out.append)
        for why in left_out or ():
            progress.note(why)
        with _host(job, engine, address, own, progress.note) as host:
            runs = execute(job, tasks, host, own, progress, held=held, steal=steal)
        gathered = gather(runs)
        if gathered.missing:
            if not quiet:
                out.print(
                    f"{gathered.missing} of {gathered.total} samples are left to other workers; the last of "
                    f"them writes the report. To see what there is: vlmfix report {job.output}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
            return []
        lease = Lease.take(job.output, REPORT)
        if lease is None:
            progress.note("another worker writes the report")
            return []
        with lease:
            comparisons = _publish(gathered, job.output, runs)
            log_report(trackers, job, comparisons, ConsoleProgress(err).note)
        return comparisons


def _check_engine(engine: str, address: str | None, shard: Shard, *, steal: bool) -> None:
    """Refuse an unknown engine, and options that do not go with it."""
    if engine not in ENGINES:
        raise ValueError(f"--engine is {engine!r}; it must be {' or '.join(ENGINES)}")
    if engine == ENGINES[0]:
        if address is not None:
            raise ValueError(f"--address {address} is of a Ray cluster; add --engine ray, or drop it")
        return
    if address is not None and address.startswith("ray://"):
        raise ValueError(
            f"--address {address} is for Ray Client, which is not supported; start on a machine of the "
            "cluster with --address auto, or give the address of its head, such as HOST:6379"
        )
    if shard.of > 1 or steal:
        what = "--steal" if steal else f"share {shard.index}/{shard.of} (--shard, or a launcher's)"
        raise ValueError(f"--engine ray divides all the work by itself; start it once, and without {what}")
    if importlib.util.find_spec("ray") is None:
        raise ImportError('--engine ray needs Ray: pip install "vlmfix[ray]"')


@contextmanager
def _host(
    job: Job, engine: str, address: str | None, shard: Shard, note: Callable[[str], None]
) -> Iterator[Host]:
    """Where the model of a job is."""
    if engine == ENGINES[0]:
        share_cores(shard)
        yield LocalHost(*_loaded(job, device_of(job.device, shard)))
        return
    from vlmfix.evaluation.runner.ray_host import on_cluster  # Ray is an extra

    with on_cluster(job, address, functools.partial(_loaded, job), note) as host:
        yield host


def _loaded(job: Job, device: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model of a job and its processor."""
    return load_model(job.model, device, job.dtype, revision=job.revision, allow_missing=job.allow_missing)


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


def report_again(
    outputs: Sequence[Path], page: Path | None = None, *, trust: bool, exports: Sequence[Path] = ()
) -> None:
    """Score the latest job of a folder again and write its report, also of a job that is not finished.

    Of several folders, one page compares the methods, and the folders stay as they are.

    Args:
        outputs: the folders; differences are to the first method of the first one.
        page: an HTML file, or a folder for `report.html`; None: for one folder its own report, for several
            ones `comparison.html` in the first.
        trust: whether records and manifests that somebody edited count.
        exports: further files or folders of results, see `vlmfix.evaluation.report.export`.

    Raises:
        ValueError: a folder is given twice.
    """
    check_exports(exports)
    folders = [output.resolve() for output in outputs]
    if twice := next((each for each in folders if folders.count(each) > 1), None):
        raise ValueError(f"{twice} is given twice; name each run once")
    plans = {output: read_plans(output, trust=trust) for output in outputs}
    gathered = {output: gather(runs, trust=trust) for output, runs in plans.items()}
    outcomes = labelled_by_run({output: each.outcomes for output, each in gathered.items()})
    runs = [run for several in plans.values() for run in several]
    if page is None and len(outputs) == 1:
        comparisons = _publish(gathered[outputs[0]], outputs[0], runs)
    else:
        path = (
            outputs[0] / COMPARISON
            if page is None
            else page
            if page.suffix == ".html"
            else page / REPORT_PAGE
        )
        check_writable(path.parent)
        comparisons = compare(outcomes)
        write_page(path, comparisons)
        out.print(tables(comparisons, width=out.width))
        out.print(str(path), soft_wrap=True, highlight=False, markup=False)
    for path in exports:
        for written in export(path, comparisons, runs, outcomes):
            out.print(str(written), soft_wrap=True, highlight=False, markup=False)


def _publish(gathered: Gathered, output: Path, runs: Sequence[RunPlan]) -> list[Comparison]:
    """Write figures and report, and show the tables."""
    comparisons = publish(gathered, output, runs)
    out.print(tables(comparisons, width=out.width))
    out.print(f"{output / REPORT_PAGE}, {METRICS}, {COSTS}", soft_wrap=True, highlight=False, markup=False)
    return comparisons


def exit_if_failed(comparisons: Sequence[Comparison], left_out: Sequence[str] = ()) -> None:
    """End a job that did all it could and has samples without an answer, or tasks without data.

    Args:
        comparisons: of the job.
        left_out: why tasks could not run.

    Raises:
        SystemExit: with the code for it, after a line that says so.
    """
    failed = sum(row.outcome.counts["failed"] for each in comparisons for row in each.rows)
    for why in left_out if comparisons else ():  # where another process writes the report, it tells, too
        err.print(why, soft_wrap=True, highlight=False, markup=False)
    if failed:
        err.print(
            f"{failed:,} samples failed and have no answer; the report names the reasons, and the same "
            "command tries them again",
            soft_wrap=True,
            highlight=False,
        )
    if failed or left_out:
        raise SystemExit(SAMPLES_FAILED)


def device_of(device: str, shard: Shard) -> str:
    """Each worker of a host has a GPU of its own."""
    if device == "auto" and shard.of > 1 and torch.cuda.is_available():
        return f"cuda:{shard.local % torch.cuda.device_count()}"
    return device


def share_cores(shard: Shard) -> None:
    """Workers of one host that each use all of its cores would slow each other down manyfold."""
    workers = shard.on_host or shard.of
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
