"""What a search improves, and what it must not give up for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vlmfix.evaluation.analysis.results import AnyMetric
from vlmfix.evaluation.tasks.base import Task

COST = "cost"
"""Forward passes a token, beams multiplied in, as the methods declare them; 1 is greedy decoding."""
AUC = "AUC"
"""Area under the ROC curve of the margin between yes and no, which no offset can change."""

Figures = Mapping[str, float]
"""Values of a candidate on some samples of a data set, by metric."""

_GUARD = re.compile(r"\s*([A-Za-z][\w -]*?)\s*(<=|>=)\s*([+-]?\d*\.?\d+)\s*")
_HIGHER, _LOWER = 1, -1
# Five beams and a little, where the user does not say.
_MAX_COST = 6


def find_metric(name: str, metrics: Mapping[str, str]) -> str:
    """The name of a metric as tables show it, however it is spelled: `chair_i` is CHAIRi.

    Args:
        name: as the user wrote it.
        metrics: names that there are, and which direction is better.

    Raises:
        ValueError: there is none.
    """
    found = [each for each in metrics if _plain(each) == _plain(name)]
    if not found:
        raise ValueError(f"there is no metric {name!r} here; there are {', '.join(metrics)}")
    return found[0]


def directions(metrics: Sequence[AnyMetric], *, yes_no: bool) -> dict[str, str]:
    """The metrics that a search can look at, and which direction is better ("": neither)."""
    found: dict[str, str] = {each.name: each.better for each in metrics if not each.group}
    return {**found, COST: "lower"} | ({AUC: "higher"} if yes_no else {})


@dataclass(frozen=True)
class Guard:
    """A bound on what a metric may lose: on its difference to greedy decoding, of the cost on its value.

    Args:
        metric: its name as tables show it.
        is_floor: whether the difference must be at least, and not at most, `bound`.
        bound: shares as shares, so that -0.01 is one point.
    """

    metric: str
    is_floor: bool
    bound: float

    @classmethod
    def parse(cls, text: str, metrics: Mapping[str, str]) -> Guard:
        """`recall >= -0.01`, `words <= 5`, `cost <= 6`.

        Raises:
            ValueError: another form, or no such metric.
        """
        found = _GUARD.fullmatch(text)
        if found is None:
            raise ValueError(
                f"--keep {text!r} is not METRIC >= NUMBER or METRIC <= NUMBER, such as 'recall >= -0.01': "
                "the difference to greedy decoding that is still allowed"
            )
        name, sense, bound = found.groups()
        return cls(find_metric(name, metrics), sense == ">=", float(bound))

    def room(self, figures: Figures, greedy: Figures) -> float:
        """How far the bound is from being broken; below 0 where it is."""
        value = figures[self.metric] - (0 if self.metric == COST else greedy[self.metric])
        return value - self.bound if self.is_floor else self.bound - value

    def violation(self, figures: Figures, greedy: Figures) -> float:
        """By how much the bound is broken; 0 where it is kept."""
        return max(0.0, -self.room(figures, greedy))

    def __str__(self) -> str:
        sense = ">=" if self.is_floor else "<="
        return f"{self.metric} {sense} {self.bound:g}"


@dataclass(frozen=True)
class Objective:
    """What is improved, and the guards.

    Args:
        metrics: the metrics, the most important first.
        signs: of each, 1 where higher is better and -1 where lower is.
        guards: what must not be given up.
    """

    metrics: tuple[str, ...]
    signs: tuple[int, ...]
    guards: tuple[Guard, ...]

    @classmethod
    def parse(cls, names: Sequence[str], guards: Sequence[str], metrics: Mapping[str, str]) -> Objective:
        """An objective as the command line has it.

        Raises:
            ValueError: no such metric, one without a better direction, or a guard of another form.
        """
        found = [find_metric(name, metrics) for name in names]
        for name in found:
            if not metrics[name]:
                able = ", ".join(each for each, better in metrics.items() if better)
                raise ValueError(f"{name} has no better direction; --objective takes {able}")
        if found[:1] == [COST]:
            raise ValueError(
                "cost cannot be the first --objective; name what it is to be weighed against first"
            )
        if len(set(found)) < len(found):
            raise ValueError(f"--objective names {', '.join(names)}; name each metric once")
        signs = tuple(_HIGHER if metrics[name] == "higher" else _LOWER for name in found)
        return cls(tuple(found), signs, tuple(Guard.parse(text, metrics) for text in guards))

    def keeps(self, figures: Mapping[str, Figures], greedy: Mapping[str, Figures]) -> bool:
        """Whether every guard holds on every data set."""
        return not self.broken(figures, greedy)

    def broken(self, figures: Mapping[str, Figures], greedy: Mapping[str, Figures]) -> list[str]:
        """The guards that do not hold, with the data set."""
        return [
            f"{guard} on {name}"
            for name in figures
            for guard in self.guards
            if guard.violation(figures[name], greedy[name]) > 0
        ]

    def gains(self, figures: Mapping[str, Figures], greedy: Mapping[str, Figures]) -> tuple[float, ...]:
        """By how much each metric is better than greedy decoding, mean over the data sets."""
        return tuple(
            sign * fmean(figures[name][metric] - greedy[name][metric] for name in figures)
            for metric, sign in zip(self.metrics, self.signs, strict=True)
        )

    @property
    def max_cost(self) -> float:
        """Forward passes a token that the guards allow."""
        return min((guard.bound for guard in self.guards if guard.metric == COST), default=math.inf)

    def value(self, figures: Mapping[str, Figures], greedy: Mapping[str, Figures]) -> float:
        """The gain of the first metric, less what breaks the guards, both mean over the data sets.

        A point of recall too little counts as much as a point of the objective: a part that needs a partner
        is not given up, nor is what misses a guard by chance.
        """
        penalty = sum(
            fmean(guard.violation(figures[name], greedy[name]) for name in figures) for guard in self.guards
        )
        return self.gains(figures, greedy)[0] - penalty

    def front(self, figures: Mapping[str, Figures], greedy: Mapping[str, Figures]) -> tuple[float, ...]:
        """The gains, and how far each guard is from being broken on the data set where it is nearest."""
        room = (min(guard.room(figures[name], greedy[name]) for name in figures) for guard in self.guards)
        return (*self.gains(figures, greedy), *room)


def default_objective(task: type[Task]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a search improves and keeps on a task, where the user does not say."""
    if task.yes_no:
        return (AUC,), ()
    if task.tradeoff is not None:
        wrong, recall = task.tradeoff
        return (wrong,), (f"{recall} >= -0.01", f"{COST} <= {_MAX_COST}")
    return (), ()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
