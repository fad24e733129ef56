"""The search for candidates by Optuna, whose trials lie in the folder of the run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from vlmfix.tuning.candidates import Candidate, Space

TRIALS = "trials.log"

# Trials of a round do not see each other, so that any number of workers finds the same.
ROUND = 6
# Of as many trials, one goes on to so many times as many images.
_REDUCTION = 3
_RUNGS = 3
# Trials after the published values that are drawn at random.
_RANDOM = 12
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried.

    Args:
        number: of the trial, from 0 on.
        candidate: what was tried.
        images: number of images of each data set on which it was tried last.
        values: what the search makes large, on these images; see `Objective.values`.
        gains: by how much each metric of the objective was better than greedy decoding.
        figures: values of all metrics, by data set.
        broken: guards that did not hold.
        is_complete: whether it was tried on the whole search set; else it was given up before.
        seconds: that it took.
    """

    number: int
    candidate: Candidate
    images: int
    values: tuple[float, ...]
    gains: tuple[float, ...]
    figures: Mapping[str, Mapping[str, float]]
    broken: Sequence[str]
    is_complete: bool
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What a candidate came to on some images; see `Trial`."""

    values: tuple[float, ...]
    gains: tuple[float, ...]
    figures: Mapping[str, Mapping[str, float]]
    broken: Sequence[str]


class Search:
    """Trials of candidates, each in a study of the rounds before its own.

    A trial depends on its number, the seed and the trials of earlier rounds, and on nothing else: killed and
    resumed on another number of workers, the search finds the same.

    Args:
        folder: of the run.
        space: what may be combined.
        images: number of images of the search set.
        objectives: number of metrics; with more than one no trial is given up early, as Optuna does not
            compare fronts halfway.
        seed: of the sampler.
    """

    def __init__(self, folder: Path, space: Space, *, images: int, objectives: int, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.rungs = _rungs(images) if objectives == 1 else [images]
        self.objectives = objectives
        self._first = space.first_trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(folder / TRIALS)))
        self._kept = optuna.create_study(
            study_name="tune", storage=storage, directions=["maximize"] * objectives, load_if_exists=True
        )

    def trials(self) -> list[Trial]:
        """All that have ended, by number."""
        return [_read(trial) for _, trial in sorted(self._ended().items())]

    def run(
        self,
        trials: int,
        measure: Callable[[Candidate, int], Measured],
        *,
        budget: float | None,
        takes: Callable[[int], bool] = lambda number: True,
        workers: int = 1,
        on_trial: Callable[[Trial], None] = lambda trial: None,
        on_wait: Callable[[int], None] = lambda number: None,
    ) -> None:
        """Try what is left of a number of trials, as far as it belongs to this process.

        Args:
            trials: number of them in all.
            measure: tries a candidate on the first images of the search set.
            budget: seconds of work, of all workers together, after which no further round begins; None: no
                bound.
            takes: whether a trial belongs to this process.
            workers: number of processes.
            on_trial: called with every trial that this process has ended.
            on_wait: called with the number of a trial of another process that is waited for.
        """
        for start in range(0, trials, ROUND):
            ended = self._ended()
            before = {number: trial for number, trial in ended.items() if number < start}
            spent = sum(_read(trial).seconds for trial in before.values()) / workers
            if budget is not None and start and spent > budget:
                return
            numbers = range(start, min(start + ROUND, trials))
            for number in numbers:
                if takes(number) and number not in ended:
                    on_trial(self._try(number, before, measure))
            waited = -1
            while missing := [number for number in numbers if number not in self._ended()]:
                if waited != missing[0]:
                    waited = missing[0]
                    on_wait(waited)
                time.sleep(_POLL_SECONDS)

    def _try(
        self,
        number: int,
        before: Mapping[int, FrozenTrial],
        measure: Callable[[Candidate, int], Measured],
    ) -> Trial:
        start = time.monotonic()
        study = self._study(number, before)
        trial = study.ask()
        candidate = self.space.suggest(trial)
        is_complete = True
        for images in self.rungs:
            measured = measure(candidate, images)
            if self.objectives == 1:
                trial.report(measured.values[0], step=round(images / self.rungs[0]))
                if images != self.rungs[-1] and trial.should_prune():
                    is_complete = False
                    break
        done = Trial(
            number,
            candidate,
            images,
            measured.values,
            measured.gains,
            measured.figures,
            measured.broken,
            is_complete,
            time.monotonic() - start,
        )
        for name, value in _attributes(done).items():
            trial.set_user_attr(name, value)
        if is_complete:
            study.tell(trial, list(measured.values))
        else:
            study.tell(trial, state=TrialState.PRUNED)
        self._kept.add_trial(study.trials[-1])
        return done

    def _study(self, number: int, before: Mapping[int, FrozenTrial]) -> optuna.Study:
        """A study in memory that knows the trials of earlier rounds."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = TPESampler(
                n_startup_trials=len(self._first) + _RANDOM, seed=self.seed * 100_003 + number
            )
        pruner: Any = (
            SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION)
            if self.objectives == 1
            else NopPruner()
        )
        study = optuna.create_study(sampler=sampler, pruner=pruner, directions=["maximize"] * self.objectives)
        study.add_trials([before[key] for key in sorted(before)])
        if number < len(self._first):
            study.enqueue_trial(self._first[number])
        return study

    def _ended(self) -> dict[int, FrozenTrial]:
        """By number; the first of two that workers have ended with the same number."""
        found: dict[int, FrozenTrial] = {}
        for trial in self._kept.get_trials(deepcopy=False):
            found.setdefault(trial.user_attrs["number"], trial)
        return found

    def importances(self) -> dict[str, float]:
        """Shares of the places in what the trials came to, of all trials with all images; {}: too few."""
        complete = [trial for trial in self._ended().values() if trial.state is TrialState.COMPLETE]
        places = ("attention", "second attention", "logits", "decoding")
        if self.objectives > 1 or len(complete) < 2 * len(places):
            return {}
        study = optuna.create_study(direction="maximize")
        study.add_trials(complete)
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            params=[name for name in places if all(name in trial.params for trial in complete)],
        )
        return dict(found)


def _rungs(images: int) -> list[int]:
    """Numbers of images on which a trial is tried, one after the other."""
    least = max(1, images // _REDUCTION ** (_RUNGS - 1))
    return sorted({min(images, least * _REDUCTION**rung) for rung in range(_RUNGS - 1)} | {images})


def _attributes(trial: Trial) -> dict[str, Any]:
    """What is kept of a trial beside what Optuna knows."""
    return {
        "number": trial.number,
        "candidate": trial.candidate.parameters,
        "images": trial.images,
        "values": list(trial.values),
        "gains": list(trial.gains),
        "figures": {name: dict(each) for name, each in trial.figures.items()},
        "broken": list(trial.broken),
        "is_complete": trial.is_complete,
        "seconds": trial.seconds,
    }


def _read(trial: FrozenTrial) -> Trial:
    kept = dict(trial.user_attrs)
    return Trial(
        number=kept["number"],
        candidate=Candidate.of(kept["candidate"]),
        images=kept["images"],
        values=tuple(kept["values"]),
        gains=tuple(kept["gains"]),
        figures=kept["figures"],
        broken=kept["broken"],
        is_complete=kept["is_complete"],
        seconds=kept["seconds"],
    )
