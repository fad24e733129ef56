"""The command `vlmfix tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.cli.completion import complete_tasks
from vlmfix.cli.options import AllowMissingOption, DeviceOption, DtypeOption, ModelOption, path_option
from vlmfix.models.embedded import DEFAULT_MODEL


def tune(
    model: ModelOption = DEFAULT_MODEL,
    task: Annotated[
        str,
        typer.Option(help="Benchmark that is to get better.", autocompletion=complete_tasks),
    ] = "chair",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="synthetic, a COCO root, or what 'vlmfix scenes' wrote; repeatable: guards hold on each. "
            "(default: synthetic, which is two)"
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric to improve, such as chair_i, chair_s, f1, accuracy, auc; repeatable. (default: the "
            "hallucinations of captions, AUC of yes/no questions)"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Guard: what a metric may lose against greedy decoding, such as 'recall >= -0.01', "
            "'words <= 5', 'cost <= 5'; repeatable. (default for captions: recall >= -0.01, cost <= 6)"
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates that are tried. (default: 54)")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for the search, such as 20m or 2h; choice and test come after it."),
    ] = None,
    output: Annotated[
        Path | None, path_option("Folder of the search. (default: runs/tune-MODEL-TASK)")
    ] = None,
    search_images: Annotated[
        int | None,
        typer.Option(
            min=10, help="Images of each data set to search on, at most. (default: 72; for questions 36)"
        ),
    ] = None,
    choice_images: Annotated[
        int | None,
        typer.Option(min=10, help="Images to choose on, at most. (default: 150; for questions 60)"),
    ] = None,
    test_images: Annotated[
        int | None,
        typer.Option(min=10, help="Images to report on, at most. (default: 200; for questions 100)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    protocol: Annotated[
        str | None, typer.Option(help="Protocol id or file of the task, with deviations as +KEY=VALUE.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts per forward pass; halved where memory runs out.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: this process is worker i of n; accelerate sets it by itself.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Find the methods that work together on a model and your data, and prove them on unseen images."""
    from vlmfix.cli.tuning import run_tuning
    from vlmfix.evaluation.tasks.registry import get_task
    from vlmfix.tuning.config import TRIALS, TuneSettings, data_sets, parse_budget
    from vlmfix.tuning.sets import QUESTIONS, Sizes

    default = QUESTIONS if get_task(task).yes_no else Sizes()
    sizes = Sizes(
        search_images or default.search, choice_images or default.choice, test_images or default.test
    )
    settings = TuneSettings(
        task=task,
        output=output or Path("runs") / f"tune-{Path(model).name}-{task}",
        model=model,
        data=data_sets(data or ["synthetic"]),
        objective=tuple(objective or ()),
        keep=None if keep is None else tuple(keep),
        trials=TRIALS if trials is None else trials,
        budget=None if budget is None else parse_budget(budget),
        seed=seed,
        sizes=sizes,
        protocol=protocol,
        batch_size=batch_size or 0,
        device=device,
        dtype=dtype,
        allow_missing=allow_missing,
    )
    run_tuning(settings, shard)
