"""Searches for recipes from their settings to the recipe file and its page."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, ProcessorMixin

import vlmfix
from vlmfix.cli.console import err, out, progress_bar
from vlmfix.cli.jobs import device_of, resumable, share_cores
from vlmfix.cli.loading import load_model
from vlmfix.evaluation.datasets.sources import scene_count
from vlmfix.evaluation.files.atomic import check_writable
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.tasks.registry import get_task
from vlmfix.tuning.calibrated import calibrated_for
from vlmfix.tuning.candidates import Space
from vlmfix.tuning.choice import GREEDY
from vlmfix.tuning.config import TuneSettings
from vlmfix.tuning.final import FinalTable
from vlmfix.tuning.objective import COST, Objective, default_objective, directions
from vlmfix.tuning.tune import Result, Tuning
from vlmfix.tuning.worlds import open_worlds
from vlmfix.tuning.write import PAGE, RECIPE_FILE, make_recipe, write_results


class TuneProgress:
    """A line for every trial, and on a terminal a bar for what is being answered."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._bar: Any = None
        self._advance: Any = None

    def note(self, text: str) -> None:
        """Something that the user should know."""
        if not self.quiet:
            err.print(escape(text), soft_wrap=True, highlight=False)

    def begin(self, title: str, total: int) -> None:
        """A stage begins that answers `total` samples."""
        self._bar = progress_bar(escape(title[:60]), total, quiet=self.quiet)
        self._advance = self._bar.__enter__()

    def step(self, count: int) -> None:
        """So many samples were answered."""
        self._advance(count)

    def end(self) -> None:
        """The stage is over."""
        self._bar.__exit__(None, None, None)


def run_tuning(settings: TuneSettings, shard: str | None) -> None:
    """Search, or this process's share of it, and write recipe and page.

    Args:
        settings: what is asked for.
        shard: `i/n`; None: as a launcher says.
    """
    # The workers of a search wait for each other, which jobs of an array cannot.
    own = Shard.from_environment(arrays=False) if shard is None else Shard.parse(shard)
    quiet = own.is_quiet  # of workers that were started together, one speaks
    progress = TuneProgress(quiet=quiet)
    task = get_task(settings.task)
    check_writable(settings.output)
    objective, keep = default_objective(task)
    settings = dataclasses.replace(
        settings,
        objective=settings.objective or objective,
        keep=keep if settings.keep is None else settings.keep,
    )
    start = time.monotonic()
    with resumable(quiet=quiet):
        share_cores(own)
        model, processor = load_model(
            settings.model,
            device_of(settings.device, own),
            settings.dtype,
            allow_missing=settings.allow_missing,
        )
        total = sum(scene_count(data) for data in settings.data.values())
        with progress_bar("drawing scenes", total, quiet=quiet) as advance:
            worlds = open_worlds(settings, model, processor, own, advance)
        tuning = _tuning(settings, worlds, model, processor, own, progress)
        result = tuning.run()
        if result is None:
            progress.note("the rest is up to worker 0, which writes the recipe")
            return
        _finish(settings, tuning, result, model, minutes=(time.monotonic() - start) / 60)


def _tuning(
    settings: TuneSettings,
    worlds: Sequence[Any],
    model: PreTrainedModel,
    processor: ProcessorMixin,
    shard: Shard,
    progress: TuneProgress,
) -> Tuning:
    task = worlds[0].task
    greedy = worlds[0].answer(GREEDY, worlds[0].sets.search[:1])
    metrics = directions(greedy.outcome.metrics, yes_no=task.yes_no)
    names = settings.objective or (next(name for name, better in metrics.items() if better),)
    objective = Objective.parse(names, settings.keep or (), metrics)
    settings.claim()  # not before: a mistake must not take the folder
    calibrated = calibrated_for(settings.output, model, processor, worlds, progress.note)
    space = Space.on(
        model, processor, decodes=not task.yes_no, calibrated=calibrated, max_cost=objective.max_cost
    )
    for name, why in space.left_out.items():
        progress.note(f"left out: {name}: {why}")
    return Tuning(settings, worlds, space, objective, shard, progress)


def _finish(
    settings: TuneSettings, tuning: Tuning, result: Result, model: PreTrainedModel, *, minutes: float
) -> None:
    recipe = None if result.chosen is None else make_recipe(settings, result, model, versions())
    write_results(tuning, result, recipe)
    metric = tuning.objective.metrics[0]
    if recipe is None:
        guards = ", ".join(map(str, tuning.objective.guards)) or "none"
        out.print(
            f"Nothing that was tried is better than greedy decoding in {metric} on the choice set (guards: "
            f"{guards}), so there is no recipe, and the test set was not touched. {settings.output / PAGE}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        return
    for table in result.tables:
        out.print(_table(table))
    installed = recipe.install()
    out.print(
        f"recipe: {settings.output / RECIPE_FILE}, kept as {installed}\n"
        f"page: {settings.output / PAGE} ({minutes:.0f} min)\n"
        f"use it: vlmfix generate --model {settings.model} --method auto --image PHOTO --prompt TEXT\n"
        "The test images have been used now: after any change, test on others.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _table(table: FinalTable) -> Table:
    shown = Table(title=escape(f"{table.data}: {table.images} test images"), title_justify="left")
    shown.add_column("")
    metrics = [name for name in table.metrics if name != COST]  # which has a column of its own
    for name in metrics:
        shown.add_column(name, justify="right")
    shown.add_column("cost", justify="right")
    for row in table.rows:
        texts = []
        for name in metrics:
            cell = row.cells[name]
            text = f"{cell.value:.3f}"
            difference = cell.difference
            if difference is not None and difference.low is not None and difference.high is not None:
                star = "*" if row.mark is not None and row.mark.marked and name == table.metrics[0] else ""
                text += f" ({difference.low:+.3f} to {difference.high:+.3f}){star}"
            texts.append(text)
        shown.add_row(escape(row.label), *texts, f"{row.cost:.1f}")
    shown.caption = (
        "In parentheses: the difference to greedy decoding, 95 %, paired by image. * more than chance, all "
        "rows counted."
    )
    return shown


def versions() -> dict[str, str]:
    """Of the software that found a recipe."""
    return {
        "vlmfix": vlmfix.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
