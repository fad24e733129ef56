"""The choice among the best trials, on images that the search did not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlmfix.evaluation.sample import Sample
from vlmfix.tuning.candidates import Candidate
from vlmfix.tuning.final import PLAIN, RECIPE, final_table
from vlmfix.tuning.objective import COST, Objective
from vlmfix.tuning.search import Trial
from vlmfix.tuning.worlds import Answered, World

GREEDY = Candidate()

# Of the best trials, as many come into the choice, and so many with the same methods.
_FINALISTS = 6
_ALIKE = 3


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


def finalists(trials: Sequence[Trial]) -> list[Candidate]:
    """The best of the trials on the whole search set that came out better than greedy decoding."""
    complete = (trial for trial in trials if trial.is_complete and trial.measured.value > 0)
    found: dict[Candidate, frozenset[str]] = {}
    for trial in sorted(complete, key=lambda each: -each.measured.value):
        methods = frozenset(trial.candidate.parameters)
        if list(found.values()).count(methods) < _ALIKE:
            found.setdefault(trial.candidate, methods)
    return list(found)[:_FINALISTS]


@dataclass(frozen=True)
class Choice:
    """Judges finalists against greedy decoding.

    Args:
        worlds: the data sets.
        objective: what is improved.
        answers: gives the answers of a candidate on samples of each data set, by its name.
    """

    worlds: Sequence[World]
    objective: Objective
    answers: Callable[[Candidate, Mapping[str, Sequence[Sample]]], Mapping[str, Answered]]

    def choose(self, finalists: Sequence[Candidate]) -> list[Finalist]:
        """The finalists on the choice set, the best one first; those that break a guard stand last.

        Guards are read on the images of search and choice together, which are more; one is broken when it is
        missed by more than the standard error of the difference. The objective is read on the choice set
        alone, as the search made it look too good on its own images.
        """
        both = {world.name: [*world.sets.search, *world.sets.choice] for world in self.worlds}
        choice = {world.name: world.sets.choice for world in self.worlds}
        greedy, greedy_both = self._figures(GREEDY, choice), self.answers(GREEDY, both)
        found = []
        for candidate in finalists:
            figures = self._figures(candidate, choice)
            broken = self._broken(self.answers(candidate, both), greedy_both)
            found.append(Finalist(candidate, self.objective.gains(figures, greedy), figures, broken))
        return sorted(found, key=lambda each: (bool(each.broken), -each.gains[0], each.candidate.cost))

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

    def _broken(self, own: Mapping[str, Answered], greedy: Mapping[str, Answered]) -> list[str]:
        """The guards that are missed by more than a standard error, with the data set."""
        found = []
        for guard in self.objective.guards:
            for name, each in own.items():
                violation = guard.violation(each.figures, greedy[name].figures)
                if violation > 0 and violation > _error(name, each, greedy[name], guard.metric):
                    found.append(f"{guard} on {name}")
        return found

    def _figures(
        self, candidate: Candidate, samples: Mapping[str, Sequence[Sample]]
    ) -> dict[str, Mapping[str, float]]:
        """Values of a candidate on samples of each data set."""
        return {name: each.figures for name, each in self.answers(candidate, samples).items()}


def _error(data: str, own: Answered, greedy: Answered, metric: str) -> float:
    """Standard error of a difference to greedy decoding; 0 where there is none."""
    if metric == COST:
        return 0.0
    cell = final_table(data, {PLAIN: greedy, RECIPE: own}, [metric]).row(RECIPE).cells[metric]
    return 0.0 if cell.difference is None else cell.difference.error or 0.0
