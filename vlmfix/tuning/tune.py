"""A search for a recipe, from its data to what it chose: search, choice, test."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from vlmfix.evaluation.files.atomic import create_json
from vlmfix.evaluation.files.hashing import differences, plain
from vlmfix.evaluation.runner.run_store import ResumeError
from vlmfix.evaluation.runner.shard import Shard
from vlmfix.evaluation.sample import Sample
from vlmfix.tuning.candidates import Candidate, Space
from vlmfix.tuning.choice import GREEDY, Choice, Finalist, finalists
from vlmfix.tuning.config import TuneSettings
from vlmfix.tuning.final import PLAIN, RECIPE, FinalTable, compared, final_table
from vlmfix.tuning.objective import Figures, Objective
from vlmfix.tuning.search import Measured, Search, Trial
from vlmfix.tuning.sets import first_images
from vlmfix.tuning.worlds import Answered, World, best_offset, pooled_margins

CHOSEN = "chosen.json"
_POLL_SECONDS = 1.0


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
        best = finalists(trials)
        sets = {world.name: [*world.sets.search, *world.sets.choice] for world in self.worlds}
        self._share([GREEDY, *best], sets)
        if self.shard.index == 0:
            choice = Choice(self.worlds, self.objective, self.answers)
            judged = choice.choose(best)
            chosen = judged[0].candidate if judged and choice.is_better(judged[0]) else None
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
