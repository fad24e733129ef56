"""A search for a recipe, from its data to what it chose: search, choice, test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.evaluation.files.atomic import create_json, write_json
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import prepare
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.tasks.base import Task
from vlmfix.tuning.candidates import Candidate, Space
from vlmfix.tuning.config import TuneSettings
from vlmfix.tuning.objective import AUC, Figures, Objective, directions
from vlmfix.tuning.search import Measured, Search, Trial
from vlmfix.tuning.sets import Sizes, ThreeSets, first_images
from vlmfix.tuning.worlds import Answered, World

CHOSEN = "chosen.json"
# Of the best trials, as many come into the choice.
_FINALISTS = 6
GREEDY = Candidate()


class Progress(Protocol):
    """Is told what happens, to show it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, title: str, running: str, total: int, done: int) -> None:
        """A stage begins that answers `total` samples; `running` is shown beside."""

    def step(self, count: int) -> None:
        """So many samples were answered."""

    def end(self) -> None:
        """The stage is over."""


@dataclass(frozen=True)
class Finalist:
    """A candidate of the choice.

    Args:
        candidate: methods and decoding.
        gains: on the choice set, see `Objective.gains`.
        figures: on the choice set, by data set.
        broken: guards that do not hold on the images of search and choice together.
    """

    candidate: Candidate
    gains: tuple[float, ...]
    figures: Mapping[str, Mapping[str, float]]
    broken: Sequence[str]


def default_objective(task: type[Task]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a search improves and keeps on a task, where the user does not say."""
    if task.yes_no:
        return (AUC,), ()
    if task.tradeoff is not None:
        wrong, recall = task.tradeoff
        return (wrong,), (f"{recall} >= -0.01",)
    return (), ()


def open_worlds(
    settings: TuneSettings,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    shard: Shard,
    note: Callable[[str], None],
    drawn: Callable[[int], None] | None = None,
) -> list[World]:
    """The data sets of a search with their three sets of images.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, or there are too few images.
    """
    worlds = []
    for number, (name, data) in enumerate(settings.data.items()):
        job = make_job(
            {
                "tasks": [settings.task],
                "model": settings.model,
                "revision": settings.revision,
                "data": data,
                "protocol": settings.protocol,
                "output": str(settings.output / f"answers-{number}"),
                "batch_size": settings.batch_size or "auto",
                "device": settings.device,
                "dtype": settings.dtype,
                "baselines": False,
            }
        )
        [plan] = prepare(job, drawn)
        sets = ThreeSets.of(plan.samples, settings.sizes, name=name)
        worlds.append(World(name, job, plan, sets, model, processor, shard, note))
    return worlds


@dataclass
class Tuning:
    """A search for a recipe on loaded models and data.

    Args:
        settings: what was asked for.
        worlds: the data sets.
        space: what may be combined.
        objective: what is improved.
        shard: of this process.
        progress: is told what happens.
    """

    settings: TuneSettings
    worlds: Sequence[World]
    space: Space
    objective: Objective
    shard: Shard
    progress: Progress
    _greedy: dict[int, dict[str, Figures]] = field(default_factory=dict, init=False)

    def search(self) -> list[Trial]:
        """Try candidates on the search set."""
        settings = self.settings
        images = min(len({each.cluster for each in world.sets.search}) for world in self.worlds)
        search = Search(
            settings.output,
            self.space,
            images=images,
            objectives=len(self.objective.metrics),
            seed=settings.seed,
        )

        def told(trial: Trial) -> None:
            self.progress.note(
                f"trial {trial.number + 1} of {settings.trials}: {trial.candidate.label}: "
                f"{self._words(trial)} ({trial.images} images a data set, {trial.seconds:.0f} s)"
            )

        search.run(
            settings.trials,
            self._measure,
            budget=settings.budget,
            takes=lambda number: number % self.shard.of == self.shard.index,
            workers=self.shard.of,
            on_trial=told,
            on_wait=lambda number: self.progress.note(
                f"waiting for trial {number + 1}, which worker {number % self.shard.of} of {self.shard.of} has"
            ),
        )
        return search.trials()

    def choose(self, trials: Sequence[Trial]) -> list[Finalist]:
        """The best trials on the choice set, the chosen one first; none, if none is better than greedy
        decoding and keeps the guards."""
        complete = sorted((trial for trial in trials if trial.is_complete), key=lambda each: -each.values[0])
        best = dict.fromkeys(trial.candidate for trial in complete if trial.values[0] > 0)
        both = {world.name: [*world.sets.search, *world.sets.choice] for world in self.worlds}
        choice = {world.name: world.sets.choice for world in self.worlds}
        greedy, greedy_both = self.figures(GREEDY, choice), self.figures(GREEDY, both)
        found = []
        for candidate in list(best)[:_FINALISTS]:
            figures = self.figures(candidate, choice)
            broken = self.objective.broken(self.figures(candidate, both), greedy_both)
            found.append(Finalist(candidate, self.objective.gains(figures, greedy), figures, broken))
        return sorted(found, key=lambda each: (bool(each.broken), -each.gains[0], each.candidate.cost))

    def figures(
        self, candidate: Candidate, samples: Mapping[str, Sequence[Any]]
    ) -> dict[str, Mapping[str, float]]:
        """Values of a candidate on samples of each data set."""
        return {name: each.figures for name, each in self.answers(candidate, samples).items()}

    def answers(self, candidate: Candidate, samples: Mapping[str, Sequence[Any]]) -> dict[str, Answered]:
        """Answers of a candidate on samples of each data set, yes and no by the offset of the search set."""
        found = {}
        for world in self.worlds:
            own = samples[world.name]
            self.progress.begin(f"{world.name} · {candidate.label}", world.task.running, len(own), 0)
            try:
                found[world.name] = world.answer(
                    candidate, own, offset=world.offset(candidate), progress=self.progress.step
                )
            finally:
                self.progress.end()
        return found

    def _measure(self, candidate: Candidate, images: int) -> Measured:
        if images not in self._greedy:
            self._greedy[images] = self._first(GREEDY, images)
        figures, greedy = self._first(candidate, images), self._greedy[images]
        return Measured(
            self.objective.values(figures, greedy),
            self.objective.gains(figures, greedy),
            figures,
            self.objective.broken(figures, greedy),
        )

    def _first(self, candidate: Candidate, images: int) -> dict[str, Figures]:
        """Figures on the first images of the search set, under an offset of these very images."""
        found = {}
        for world in self.worlds:
            samples = first_images(world.sets.search, images)
            self.progress.begin(f"{world.name} · {candidate.label}", world.task.running, len(samples), 0)
            try:
                found[world.name] = world.answer(candidate, samples, progress=self.progress.step).figures
            finally:
                self.progress.end()
        return found

    def _words(self, trial: Trial) -> str:
        means = {
            name: fmean(each[name] for each in trial.figures.values())
            for name in dict.fromkeys((*self.objective.metrics, *(g.metric for g in self.objective.guards)))
        }
        return ", ".join(f"{name} {value:.3f}" for name, value in means.items())
