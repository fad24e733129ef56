"""The commands `vlmfix eval` and `vlmfix report`."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import datasets
import torch
import typer
from rich.markup import escape

from vlmfix.cli.options import (
    err,
    given_path,
    load_model,
    out,
    path_option,
    progress_bar,
)
from vlmfix.evaluation.datasets.sources import scene_count
from vlmfix.evaluation.report.collect import (
    COSTS,
    METRICS,
    REPORT,
    gather,
    publish,
)
from vlmfix.evaluation.report.console_tables import tables
from vlmfix.evaluation.runner.config import (
    RESUME,
    Job,
    make_job,
    read_job,
)
from vlmfix.evaluation.runner.executor import execute
from vlmfix.evaluation.runner.plan import Planned, planned_again, prepare
from vlmfix.evaluation.runner.progress import ConsoleWatcher
from vlmfix.evaluation.runner.shard import Share
from vlmfix.evaluation.runner.worker import TooManyErrorsError
from vlmfix.failures import printable, words
from vlmfix.methods.grammar import parse_settings
from vlmfix.models.loading import DEFAULT_MODEL


def evaluate(
    tasks: Annotated[list[str] | None, typer.Argument(help="pope, chair, vqa; one or several.")] = None,
    config: Annotated[
        Path | None,
        path_option("Job file (YAML); options on the command line take its place."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Embedded model, folder or hub id. (default: {DEFAULT_MODEL})")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method by name, a+b, or greedy; repeatable. Others are compared with the first."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="METHOD.KEY=VALUE, a parameter of a method; repeatable.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="synthetic, a COCO root, or what 'vlmfix scenes' wrote. (default: synthetic)"),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol id or file, one a task, with deviations as +KEY=VALUE; repeatable."),
    ] = None,
    limit: Annotated[
        str | None, typer.Option(help="Number, or share below 1, of the items of each task; a stable subset.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Prompts per forward pass, or auto; halved where memory runs out.")
    ] = None,
    output: Annotated[
        Path | None,
        path_option("Folder of the runs, figures and report. (default: runs/MODEL)"),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: this process takes share i of n; accelerate sets it by itself.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of protocols that sample.")] = None,
    resume: Annotated[str | None, typer.Option(help=f"{', '.join(RESUME)}. (default: {RESUME[0]})")] = None,
    controls: Annotated[
        bool | None,
        typer.Option(
            "--controls/--no-controls",
            help="Add the controls that belong to a comparison: greedy decoding, a biased prompt, yes/no "
            "shifted to a method's balance, captions cut to its lengths. (default: yes)",
        ),
    ] = None,
    retry_errors: Annotated[
        bool | None,
        typer.Option("--retry-errors/--no-retry-errors", help="Try failed items again. (default: yes)"),
    ] = None,
    max_errors: Annotated[
        str | None,
        typer.Option(help="Number or share of failures that stop a run. (default: 1 %, at least 25)"),
    ] = None,
    allow_environment_change: Annotated[
        bool | None, typer.Option("--allow-environment-change", help="Go on with other versions or devices.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ..., or auto. (default: auto)")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's. (default: auto)"),
    ] = None,
    allow_missing: Annotated[
        bool | None,
        typer.Option("--allow-missing", help="Go on where weights are missing, unexpected or not finite."),
    ] = None,
) -> None:
    """Measure methods on POPE, CHAIR and VQA; start the same command again to go on after a stop."""
    given: dict[str, Any] = {
        "tasks": tasks or None,
        "model": model,
        "methods": _entries(method, set_ or []),
        "data": data,
        "protocol": protocol or None,
        "limit": limit,
        "batch_size": batch_size,
        "output": None if output is None else str(output),
        "seed": seed,
        "resume": resume,
        "controls": controls,
        "retry_errors": retry_errors,
        "max_errors": max_errors,
        "allow_environment_change": allow_environment_change,
        "device": device,
        "dtype": dtype,
        "allow_missing": allow_missing,
    }
    if not err.is_terminal:
        datasets.disable_progress_bars()
    settings = read_job(config) if config is not None else {}
    job = make_job(settings | {name: value for name, value in given.items() if value is not None})
    share = Share.from_environment() if shard is None else Share.parse(shard)
    quiet = shard is None and share.index > 0  # of workers that were started together, one speaks
    watcher = ConsoleWatcher(err, quiet=quiet)
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with progress_bar("drawing scenes", scene_count(job.data), quiet=quiet) as advance:
            prepared = prepare(job, advance)
        _share_cores(share)
        loaded = load_model(
            job.model,
            _device(job, share),
            job.dtype,
            revision=job.revision,
            allow_missing=job.allow_missing,
        )
        runs = execute(job, prepared, *loaded, share, watcher)
        _finish(job.output, runs, quiet=quiet, partial=False)
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


def report(
    output: Annotated[Path, typer.Argument(parser=given_path, help="The --output of 'vlmfix eval'.")],
) -> None:
    """Score the latest job of a folder again and write its report, also of a job that is not finished."""
    _finish(output, planned_again(output), quiet=False, partial=True)


def _finish(output: Path, runs: Sequence[Planned], *, quiet: bool, partial: bool) -> None:
    """Figures and report, when all items are there or a partial report was asked for."""
    gathered = gather(runs)
    if gathered.missing and not partial:
        if not quiet:
            out.print(
                f"{gathered.missing} of {gathered.total} items are left to other workers; the last of them "
                f"writes the report. To see what there is: vlmfix report {output}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        return
    comparisons = publish(gathered, output, runs)
    out.print(tables(comparisons, width=out.width))
    out.print(f"{output / REPORT}, {METRICS}, {COSTS}", soft_wrap=True, highlight=False, markup=False)


def _entries(names: list[str] | None, settings: list[str]) -> list[Any] | None:
    """Methods with their parameters in the form of a job file."""
    if names is None:
        if settings:
            raise ValueError(f"--set {settings[0]} belongs to no --method; name one")
        return None
    entries: list[Any] = []
    for name, chosen in zip(names, parse_settings(names, settings), strict=True):
        given = {each: own for each, own in chosen.items() if own}
        several = len(chosen) > 1
        entries.append({name: given if several else given.popitem()[1]} if given else name)
    return entries


def _device(job: Job, share: Share) -> str:
    """Each worker of a host has a GPU of its own."""
    if job.device == "auto" and share.of > 1 and torch.cuda.is_available():
        return f"cuda:{share.local % torch.cuda.device_count()}"
    return job.device


def _share_cores(share: Share) -> None:
    """Workers of one host that each use all of its cores would slow each other down manyfold."""
    if share.of > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // share.of))


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
