"""The command `vlmfix eval`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmfix.cli.completion import complete_methods, complete_models, complete_tasks
from vlmfix.cli.options import RECIPE, ForceOption, TasksOption, path_option
from vlmfix.methods.grammar import parse_settings
from vlmfix.methods.registry import AUTO
from vlmfix.models.embedded import DEFAULT_MODEL


def _old_spelling(value: bool | None) -> bool | None:
    if value is not None:
        prefix = "" if value else "no-"
        warnings.warn(f"--{prefix}controls is called --{prefix}baselines now", FutureWarning, stacklevel=1)
    return value


def evaluate(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(help="Benchmarks, such as pope chair vqa.", autocompletion=complete_tasks),
    ] = None,
    tasks_from: TasksOption = None,
    config: Annotated[
        Path | None,
        path_option("Job file (YAML); options on the command line take its place."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Embedded model, folder or hub id. (default: {DEFAULT_MODEL})",
            autocompletion=complete_models,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method by name, a+b, or greedy; repeatable. Others are compared with the first. Or auto "
            "alone: the recipe of the checkpoint.",
            autocompletion=complete_methods,
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help=f"{RECIPE}; a row beside those of --method; repeatable.")
    ] = None,
    force: ForceOption = False,
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
        str | None,
        typer.Option(
            help="About how many samples of each task, or a share below 1 of its images: whole images, the "
            "same ones each time."
        ),
    ] = None,
    limit_images: Annotated[
        int | None,
        typer.Option(
            help="How many images of each task, or objects or sets where a benchmark goes by these, in the "
            "place of --limit."
        ),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Prompts per forward pass, or auto; halved where memory runs out.")
    ] = None,
    output: Annotated[
        Path | None,
        path_option("Folder of the runs, figures and report. (default: runs/MODEL)"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="i/n: this process takes share i of n; accelerate, mpirun, srun and job arrays set it by "
            "themselves."
        ),
    ] = None,
    steal: Annotated[
        bool,
        typer.Option("--steal", help="Go on with shares that nobody is at work on, until all is answered."),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Where the model is: local, or ray: on the GPUs or nodes of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster, such as auto or HOST:6379. (default: as Ray finds it)"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of protocols that sample.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="if_possible, always, never. (default: if_possible)")
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Add the baselines that belong to a comparison: greedy decoding, a biased prompt, yes/no "
            "shifted to a method's balance, captions cut to its lengths. (default: yes)",
        ),
    ] = None,
    controls: Annotated[
        bool | None, typer.Option("--controls/--no-controls", hidden=True, callback=_old_spelling)
    ] = None,
    retry_errors: Annotated[
        bool | None,
        typer.Option("--retry-errors/--no-retry-errors", help="Try failed samples again. (default: yes)"),
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
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="wandb, mlflow, tensorboard, trackio: give it figures and report; repeatable."),
    ] = None,
) -> None:
    """Measure methods on benchmarks; start the same command again to go on after a stop."""
    from vlmfix.cli.jobs import exit_if_failed, run_job

    given: dict[str, Any] = {
        "tasks": tasks or None,
        "tasks_from": [str(each) for each in tasks_from or []] or None,
        "model": model,
        "methods": _entries(method, set_ or []),
        "recipes": recipe or None,
        "force": force or None,
        "data": data,
        "protocol": protocol or None,
        "limit": limit,
        "limit_images": limit_images,
        "batch_size": batch_size,
        "output": None if output is None else str(output),
        "seed": seed,
        "resume": resume,
        "baselines": controls if baselines is None else baselines,
        "retry_errors": retry_errors,
        "max_errors": max_errors,
        "allow_environment_change": allow_environment_change,
        "device": device,
        "dtype": dtype,
        "allow_missing": allow_missing,
    }
    left_out: list[str] = []
    found = run_job(
        given,
        config,
        shard,
        steal=steal,
        engine=engine,
        address=address,
        trackers=tracker or (),
        left_out=left_out,
    )
    exit_if_failed(found, left_out)


def _entries(names: list[str] | None, settings: list[str]) -> list[Any] | None:
    """Methods with their parameters in the form of a job file."""
    if names is None:
        if settings:
            raise ValueError(f"--set {settings[0]} belongs to no --method; name one")
        return None
    if names == [AUTO] and not settings:
        return names
    entries: list[Any] = []
    for name, chosen in zip(names, parse_settings(names, settings), strict=True):
        given = {each: own for each, own in chosen.items() if own}
        several = len(chosen) > 1
        entries.append({name: given if several else given.popitem()[1]} if given else name)
    return entries
