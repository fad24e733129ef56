"""A search for a recipe, from its data to what it chose: search, choice, test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from transformers import PreTrainedModel, ProcessorMixin

from vlmfix.evaluation.files.atomic import create_json
from vlmfix.evaluation.files.hashing import differences, plain
from vlmfix.evaluation.runner.config import make_job
from vlmfix.evaluation.runner.plan import prepare
from vlmfix.evaluation.runner.run_store import ResumeError
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Task
from vlmfix.tuning.candidates import Candidate, Space
from vlmfix.tuning.config import TuneSettings
from vlmfix.tuning.final import PLAIN, RECIPE, FinalTable, compared, final_table
from vlmfix.tuning.objective import AUC, COST, Figures, Objective
from vlmfix.tuning.search import Measured, Search, Trial
from vlmfix.tuning.sets import ThreeSets, first_images
from vlmfix.tuning.worlds import Answered, World, best_offset, pooled_margins

CHOSEN = "chosen.json"
# Of the best trials, as many come into the choice.
_FINALISTS = 5
# Five beams and a little, where the user does not say.
_MAX_COST = 6
_POLL_SECONDS = 1.0
GREEDY = Candidate()


class Progress(Protocol):
    """Is told what happens, to show it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, title: str, total: int) -> None:
        """A stage begins that answers `total` samples."""

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


@dataclass(frozen=True)
class Result:
    """What a search came to.

    Args:
        trials: all of them.
        importances: shares of the places in what trials came to, see `Search.importances`.
        finalists: the best trials on the choice set, the best one first.
        chosen: the recipe; None: nothing is better than greedy decoding and keeps the guards.
        offset: between yes and no, that belongs to it; None for other tasks.
        tables: of the test set, one a data set.
    """

    trials: Sequence[Trial]
    importances: Mapping[str, float]
    finalists: Sequence[Finalist]
    chosen: Candidate | None
    offset: float | None
    tables: Sequence[FinalTable]


def default_objective(task: type[Task]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a search improves and keeps on a task, where the user does not say."""
    if task.yes_no:
        return (AUC,), ()
    if task.tradeoff is not None:
        wrong, recall = task.tradeoff
        return (wrong,), (f"{recall} >= -0.01", f"{COST} <= {_MAX_COST}")
    return (), ()


def open_worlds(
    settings: TuneSettings,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    shard: Shard,
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
        worlds.append(World(name, job, plan, sets, model, processor, shard))
    return worlds


def _error(data: str, own: Answered, greedy: Answered, metric: str) -> float:
    """Standard error of a difference to greedy decoding; 0 where there is none."""
    if metric == COST:
        return 0.0
    cell = final_table(data, {PLAIN: greedy, RECIPE: own}, [metric]).row(RECIPE).cells[metric]
    return 0.0 if cell.difference is None else cell.difference.error or 0.0


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
    _offsets: dict[Candidate, float] = field(default_factory=dict, init=False)

    def run(self) -> Result | None:
        """Search, choose and test, as far as it belongs to this process; None: another one has the rest."""
        trials = self.search()
        finalists = self._finalists(trials)
        sets = {world.name: [*world.sets.search, *world.sets.choice] for world in self.worlds}
        self._share([GREEDY, *finalists], sets)
        if self.shard.index == 0:
            judged = self.choose(finalists)
            chosen = judged[0].candidate if judged and self.is_better(judged[0]) else None
            self._claim_test(chosen)
        else:
            chosen = self._await_choice()
        rows = {} if chosen is None else compared(chosen)
        test = {world.name: world.sets.test for world in self.worlds}
        self._share(list(rows.values()), test)
        if self.shard.index != 0:
            return None
        tables = [] if chosen is None else self._tables(rows, test)
        offset = None if chosen is None else self.offset(chosen)
        return Result(trials, self._search().importances(), judged, chosen, offset, tables)

    def _tables(
        self, rows: Mapping[str, Candidate], samples: Mapping[str, Sequence[Sample]]
    ) -> list[FinalTable]:
        answered = {label: self.answers(candidate, samples) for label, candidate in rows.items()}
        metrics = [*self.objective.metrics, *(guard.metric for guard in self.objective.guards)]
        shown = dict.fromkeys([*metrics, *self._beside])
        tables = []
        for world in self.worlds:
            own = {label: each[world.name] for label, each in answered.items()}
            if world.task.yes_no:
                plain = world.answer(GREEDY, samples[world.name], offset=0.0)
                own = {PLAIN: own[PLAIN], f"{PLAIN}, no offset": plain} | own
            else:
                own |= world.matched(own[PLAIN], own[RECIPE])
            known = own[PLAIN].figures
            tables.append(final_table(world.name, own, [name for name in shown if name in known]))
        return tables

    @property
    def _beside(self) -> tuple[str, ...]:
        """Metrics that explain the objective."""
        task = self.worlds[0].task
        return ("accuracy", "yes ratio") if task.yes_no else (*(task.tradeoff or ()), "words")

    def offset(self, candidate: Candidate) -> float | None:
        """The offset between yes and no with the highest accuracy on all search sets; None: other tasks."""
        if not self.worlds[0].task.yes_no:
            return None
        if candidate not in self._offsets:
            answered = [world.answer(candidate, world.sets.search) for world in self.worlds]
            self._offsets[candidate] = best_offset(*pooled_margins(answered))
        return self._offsets[candidate]

    def _share(self, candidates: Sequence[Candidate], samples: Mapping[str, Sequence[Sample]]) -> None:
        """Answer this process's part of some candidates; the first process does what is left of the rest."""
        for number, candidate in enumerate(candidates):
            if number % self.shard.of == self.shard.index:
                self.answers(candidate, samples)

    def _claim_test(self, chosen: Candidate | None) -> None:
        """Note what is tested before the test set is answered.

        Raises:
            ResumeError: another candidate was tested on it.
        """
        path = self.settings.output / CHOSEN
        own = {"candidate": None if chosen is None else chosen.parameters}
        create_json(path, own)
        known = json.loads(path.read_text(encoding="utf-8"))
        if lines := differences(known, plain(own)):
            raise ResumeError(
                f"the test set of {self.settings.output} was answered for another recipe "
                f"({'; '.join(lines)}); test this one on other pictures, with another --output"
            )

    def _await_choice(self) -> Candidate | None:
        path = self.settings.output / CHOSEN
        if not path.exists():
            self.progress.note(f"waiting for the choice, which worker 0 of {self.shard.of} makes")
        while not path.exists():
            time.sleep(_POLL_SECONDS)
        found = json.loads(path.read_text(encoding="utf-8"))["candidate"]
        return None if found is None else Candidate.of(found)

    def is_better(self, finalist: Finalist) -> bool:
        """Whether a finalist keeps the guards and is better than greedy decoding on the choice set: on the
        whole, and on one data set by an interval that excludes 0."""
        if finalist.broken or finalist.gains[0] <= 0:
            return False
        sign, metric = self.objective.signs[0], self.objective.metrics[0]
        choice = {world.name: world.sets.choice for world in self.worlds}
        greedy, own = self.answers(GREEDY, choice), self.answers(finalist.candidate, choice)
        for world in self.worlds:
            answered = {PLAIN: greedy[world.name], RECIPE: own[world.name]}
            difference = final_table(world.name, answered, [metric]).row(RECIPE).cells[metric].difference
            if difference is not None and difference.excludes_zero and sign * difference.value > 0:
                return True
        return False

    def _search(self) -> Search:
        images = min(len({each.cluster for each in world.sets.search}) for world in self.worlds)
        return Search(
            self.settings.output,
            self.space,
            images=images,
            seed=self.settings.seed,
        )

    def search(self) -> list[Trial]:
        """Try candidates on the search set."""
        settings = self.settings
        search = self._search()

        def told(trial: Trial) -> None:
            if not trial.measured.figures:
                self.progress.note(f"trial {trial.number + 1} is refused: {trial.measured.broken[0]}")
                return
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
                f"waiting for trial {number + 1} of worker {number % self.shard.of} of {self.shard.of}"
            ),
        )
        return search.trials()

    def _finalists(self, trials: Sequence[Trial]) -> list[Candidate]:
        """The best of the trials on the whole search set that came out better than greedy decoding."""
        complete = (trial for trial in trials if trial.is_complete and trial.measured.value > 0)
        best: dict[frozenset[str], Candidate] = {}  # of the same methods, one: the others are hardly another
        for trial in sorted(complete, key=lambda each: -each.measured.value):
            best.setdefault(frozenset(name for name, _ in trial.candidate.parts), trial.candidate)
        return list(best.values())[:_FINALISTS]

    def choose(self, finalists: Sequence[Candidate]) -> list[Finalist]:
        """The finalists on the choice set, the best one first; those that break a guard stand last.

        Guards are read on the images of search and choice together, which are more; one is broken when it is
        missed by more than the standard error of the difference. The objective is read on the choice set
        alone, as the search made it look too good on its own images.
        """
        both = {world.name: [*world.sets.search, *world.sets.choice] for world in self.worlds}
        choice = {world.name: world.sets.choice for world in self.worlds}
        greedy, greedy_both = self.figures(GREEDY, choice), self.answers(GREEDY, both)
        found = []
        for candidate in finalists:
            figures = self.figures(candidate, choice)
            broken = self._broken(self.answers(candidate, both), greedy_both)
            found.append(Finalist(candidate, self.objective.gains(figures, greedy), figures, broken))
        return sorted(found, key=lambda each: (bool(each.broken), -each.gains[0], each.candidate.cost))

    def _broken(self, own: Mapping[str, Answered], greedy: Mapping[str, Answered]) -> list[str]:
        """The guards that are missed by more than a standard error, with the data set."""
        found = []
        for guard in self.objective.guards:
            for name, each in own.items():
                violation = guard.violation(each.figures, greedy[name].figures)
                if violation > 0 and violation > _error(name, each, greedy[name], guard.metric):
                    found.append(f"{guard} on {name}")
        return found

    def figures(
        self, candidate: Candidate, samples: Mapping[str, Sequence[Sample]]
    ) -> dict[str, Mapping[str, float]]:
        """Values of a candidate on samples of each data set."""
        return {name: each.figures for name, each in self.answers(candidate, samples).items()}

    def answers(self, candidate: Candidate, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Answered]:
        """Answers of a candidate on samples of each data set, under its offset between yes and no."""
        found = {}
        for world in self.worlds:
            own = samples[world.name]
            self.progress.begin(f"{world.name} · {candidate.label}", len(own))
            try:
                found[world.name] = world.answer(
                    candidate, own, offset=self.offset(candidate), progress=self.progress.step
                )
            finally:
                self.progress.end()
        return found

    def _measure(self, candidate: Candidate, images: int) -> Measured:
        if images not in self._greedy:
            self._greedy[images] = self._first(GREEDY, images)
        figures, greedy = self._first(candidate, images), self._greedy[images]
        return Measured(
            self.objective.value(figures, greedy),
            self.objective.front(figures, greedy),
            self.objective.gains(figures, greedy),
            figures,
            self.objective.broken(figures, greedy),
        )

    def _first(self, candidate: Candidate, images: int) -> dict[str, Figures]:
        """Figures on the first images of the search set, under an offset of these very images."""
        found = {}
        for world in self.worlds:
            samples = first_images(world.sets.search, images)
            self.progress.begin(f"{world.name} · {candidate.label}", len(samples))
            try:
                found[world.name] = world.answer(candidate, samples, progress=self.progress.step).figures
            finally:
                self.progress.end()
        return found

    def _words(self, trial: Trial) -> str:
        means = {
            name: fmean(each[name] for each in trial.measured.figures.values())
            for name in dict.fromkeys((*self.objective.metrics, *(g.metric for g in self.objective.guards)))
        }
        return ", ".join(f"{name} {value:.3f}" for name, value in means.items())
