"""The search for candidates by Optuna, whose trials lie in the folder of the run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from vlmfix.errors import UnsupportedError
from vlmfix.evaluation.files.hashing import plain
from vlmfix.tuning.candidates import Candidate, Space

TRIALS = "trials.log"

# Trials of a round do not see each other, so that any number of workers finds the same.
ROUND = 6
# Trials begin on a third of the images; the better half of them goes on to all.
_BEGIN = 1 / 3
_REDUCTION = 2
# After the planned ones, one trial of a round is free to choose methods. The others keep those of the best
# trials, by rank, and look for better strengths: near the good ones, or anywhere.
_NEAR = (0, 1)
_ANYWHERE = (0, 1, 2)
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Measured:
    """What a candidate came to on some images.

    Args:
        value: what the sampler makes large, and what decides which trials go on, see `Objective.value`.
        front: by which methods that stand alone are chosen for combinations, see `Objective.front`.
        gains: by how much each metric of the objective was better than greedy decoding.
        figures: values of all metrics, by data set.
        broken: guards that did not hold.
    """

    value: float
    front: tuple[float, ...]
    gains: tuple[float, ...]
    figures: Mapping[str, Mapping[str, float]]
    broken: Sequence[str]


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried.

    Args:
        number: of the trial, from 0 on.
        candidate: what was tried.
        images: number of images of each data set on which it was tried last.
        measured: on these images.
        is_complete: whether it was tried on the whole search set; else it was given up before.
        seconds: that it took.
    """

    number: int
    candidate: Candidate
    images: int
    measured: Measured
    is_complete: bool
    seconds: float


class Search:
    """Trials of candidates, each in a study of the rounds before its own.

    The first trials are planned: greedy decoding, every method alone, and combinations of those that did best
    alone. Optuna's samplers go on from there, most of the time with the methods of the best trials; of
    several metrics, with the front of all of them.

    A trial depends on its number, the seed and the trials of earlier rounds, and on nothing else: killed and
    resumed on another number of workers, the search finds the same.

    Args:
        folder: of the run.
        space: what may be combined.
        images: number of images of the search set.
        seed: of the sampler.
    """

    def __init__(self, folder: Path, space: Space, *, images: int, seed: int) -> None:
        self.space = space
        self.seed = seed
        self.rungs = _rungs(images)
        self._first = space.first_trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(folder / TRIALS)))
        self._kept = optuna.create_study(
            study_name="tune", storage=storage, direction="maximize", load_if_exists=True
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
        earlier = [before[key] for key in sorted(before)]
        asked = self._sampled(number, earlier)
        candidate = self.space.suggest(asked)
        pruning = optuna.create_study(
            direction="maximize",
            pruner=SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION),
        )
        pruning.add_trials(earlier)
        trial = pruning.ask()
        is_complete = True
        for images in self.rungs:
            try:
                measured = measure(candidate, images)
            except UnsupportedError as error:  # what only decoding itself can tell
                first = earlier[0].user_attrs
                measured = _refused(error, metrics=len(first["gains"]), front=len(first["front"]))
                is_complete = False
                break
            trial.report(measured.value, step=images // self.rungs[0])
            if images != self.rungs[-1] and trial.should_prune():
                is_complete = False
                break
        done = Trial(number, candidate, images, measured, is_complete, time.monotonic() - start)
        seen = pruning.trials[-1]
        self._kept.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if is_complete else TrialState.PRUNED,
                value=measured.value,
                params=asked.params,
                distributions=asked.distributions,
                user_attrs=_attributes(done),
                system_attrs=seen.system_attrs,
                intermediate_values=seen.intermediate_values,
            )
        )
        return done

    def _sampled(self, number: int, earlier: Sequence[FrozenTrial]) -> optuna.Trial:
        """A trial of a study in memory that knows those of earlier rounds, given up or not."""
        planned = self._planned(earlier)
        sampler = self._sampler(number, planned, earlier)
        further = len(earlier[0].user_attrs["gains"]) - 1 if earlier else 0
        study = optuna.create_study(sampler=sampler, directions=["maximize"] * (1 + further))
        # Of one metric, Optuna ranks trials that were given up after those that were not; fronts it makes of
        # complete ones alone.
        study.add_trials([_with_all_metrics(trial) for trial in earlier] if further else earlier)
        if number < len(planned):
            study.enqueue_trial(planned[number])
        return study.ask()

    def _sampler(self, number: int, planned: Sequence[object], earlier: Sequence[FrozenTrial]) -> BaseSampler:
        seed = self.seed * 100_003 + number
        near = TPESampler(n_startup_trials=len(planned), seed=seed)
        place = number % ROUND - 1
        if number < len(planned) or place < 0:
            return near
        chosen = _choices(earlier, (*_NEAR, *_ANYWHERE)[place])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return PartialFixedSampler(chosen, near if place < len(_NEAR) else RandomSampler(seed))

    def _planned(self, earlier: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
        """The first trials: greedy decoding, every method alone, and combinations of the best of these."""
        alone = len(self._first)
        known = {trial.user_attrs["number"]: trial.user_attrs for trial in earlier}
        if not all(number in known for number in range(alone)):
            return self._first
        # Those of the round in which the last method stands alone do not know its result.
        between: list[dict[str, Any]] = [{} for _ in range(-alone % ROUND)]
        fronts, values = {}, {}
        for number in range(1, alone):
            [name] = known[number]["candidate"]
            fronts[name], values[name] = known[number]["front"], known[number]["value"]
        return [*self._first, *between, *self.space.combinations(fronts, values)]

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
        if len(complete) < 2 * len(places):
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
    return sorted({max(1, round(images * _BEGIN)), images})


def _choices(earlier: Sequence[FrozenTrial], rank: int) -> dict[str, Any]:
    """The methods, and whatever else is no number, of the trial of this rank, one of each set of methods."""
    complete = (trial for trial in earlier if trial.state is TrialState.COMPLETE)
    best: dict[frozenset[str], FrozenTrial] = {}
    for trial in sorted(complete, key=lambda each: -each.user_attrs["value"]):
        best.setdefault(frozenset(trial.user_attrs["candidate"]), trial)
    chosen = [*best.values()][::1][min(rank, len(best) - 1)]
    return {
        name: value
        for name, value in chosen.params.items()
        if isinstance(chosen.distributions[name], CategoricalDistribution)
    }


def _with_all_metrics(trial: FrozenTrial) -> FrozenTrial:
    """A trial as one of several metrics, complete."""
    values = [trial.user_attrs["value"], *trial.user_attrs["gains"][1:]]
    return optuna.trial.create_trial(values=values, params=trial.params, distributions=trial.distributions)


def _refused(error: UnsupportedError, *, metrics: int, front: int) -> Measured:
    """What a candidate is worth that the library refuses."""
    return Measured(-1.0, (-1.0,) * front, (-1.0,) * metrics, {}, [str(error)])


def _attributes(trial: Trial) -> dict[str, Any]:
    """What is kept of a trial beside what Optuna knows."""
    return {
        "number": trial.number,
        "candidate": trial.candidate.parameters,
        "images": trial.images,
        **plain(asdict(trial.measured)),
        "is_complete": trial.is_complete,
        "seconds": trial.seconds,
    }


def _read(trial: FrozenTrial) -> Trial:
    kept = trial.user_attrs
    measured = Measured(
        kept["value"], tuple(kept["front"]), tuple(kept["gains"]), kept["figures"], kept["broken"]
    )
    return Trial(
        kept["number"],
        Candidate.of(kept["candidate"]),
        kept["images"],
        measured,
        kept["is_complete"],
        kept["seconds"],
    )
