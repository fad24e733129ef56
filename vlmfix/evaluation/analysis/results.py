"""Results of a job: metrics as sums over samples, and one outcome for each task and method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlmfix.evaluation.analysis.ranks import MEASURES


@dataclass(frozen=True, eq=False)
class Metric:
    """A ratio of sums over samples, or the unweighted mean of several such ratios (over splits, say).

    Accuracy is right answers over answers, F1 is `2 TP` over `2 TP + FP + FN`, CHAIRi is hallucinated
    mentions over mentions: all that is needed to resample a metric are the two terms of each sample.

    Args:
        name: as tables show it.
        parts: what each sample adds to the numerator of each ratio, `(ratios, samples)` float.
        wholes: what it adds to the denominator, the same shape; samples outside a ratio add 0 to both.
        group: the split or type that it is restricted to; "" for the whole task.
        better: which direction is an improvement; "" for figures that only explain others.
        percent: whether it is a share, shown times 100.
        most: the largest value that a figure which is no share can have, where 0 is its smallest; None: its
            values have no bounds.
    """

    name: str
    parts: np.ndarray
    wholes: np.ndarray
    group: str = ""
    better: Literal["higher", "lower", ""] = ""
    percent: bool = True
    most: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which values it lies."""
        if self.percent:
            return 0.0, 1.0
        return (-np.inf, np.inf) if self.most is None else (0.0, self.most)

    @property
    def is_defined(self) -> bool:
        """Whether no denominator is zero."""
        return bool((self.wholes.sum(axis=1) > 0).all())

    @property
    def value(self) -> float:
        """The ratio over all samples; a zero denominator gives 0.0."""
        wholes = self.wholes.sum(axis=1).astype(float)
        parts = self.parts.sum(axis=1)
        return float(np.divide(parts, wholes, out=np.zeros_like(wholes), where=wholes > 0).mean())

    def only(self, kept: np.ndarray) -> Metric:
        """The metric over some of the samples, `(samples,)` bool; the others add nothing."""
        return dataclasses.replace(self, parts=self.parts * kept, wholes=self.wholes * kept)

    def in_order(self, order: Sequence[int]) -> Metric:
        """The metric with its samples in another order."""
        return dataclasses.replace(self, parts=self.parts[:, order], wholes=self.wholes[:, order])


@dataclass(frozen=True, eq=False)
class RankMetric:
    """How well the margins between yes and no rank the questions, or the unweighted mean over several sets.

    Args:
        name: of `vlmfix.evaluation.analysis.ranks.MEASURES`.
        margins: how far yes is above no at the first token of each answer, `(samples,)` float.
        is_yes: whether yes is right, `(samples,)` bool.
        members: which samples are in each set, `(sets, samples)` bool.
        group: the split or type that it is restricted to; "" for the whole task.
    """

    name: str
    margins: np.ndarray
    is_yes: np.ndarray
    members: np.ndarray
    group: str = ""
    better: Literal["higher", "lower", ""] = "higher"
    percent: bool = True

    @property
    def wholes(self) -> np.ndarray:
        """Which samples count in each set, as numbers."""
        return self.members.astype(float)

    @property
    def is_defined(self) -> bool:
        """Whether both answers occur in each set."""
        return bool(
            (self.members & self.is_yes).any(axis=1).all() and (self.members & ~self.is_yes).any(axis=1).all()
        )

    @property
    def value(self) -> float:
        """The mean over the sets; 0.0 where one of them lacks an answer."""
        return float(self.shares()[0]) if self.is_defined else 0.0

    def shares(self) -> tuple[float, np.ndarray]:
        """The mean over the sets, and by how much each sample moves it to first order, `(samples,)`; defined
        where both answers occur in each set."""
        value, shares = 0.0, np.zeros(len(self.margins))
        for member in self.members:
            own, moves = MEASURES[self.name](self.margins[member], self.is_yes[member])
            value += own / len(self.members)
            shares[member] += moves / len(self.members)
        return value, shares

    def only(self, kept: np.ndarray) -> RankMetric:
        """The metric over some of the samples, `(samples,)` bool."""
        return dataclasses.replace(self, members=self.members & kept)

    def in_order(self, order: Sequence[int]) -> RankMetric:
        """The metric with its samples in another order."""
        return dataclasses.replace(
            self, margins=self.margins[order], is_yes=self.is_yes[order], members=self.members[:, order]
        )


AnyMetric = Metric | RankMetric


@dataclass(frozen=True)
class Calibration:
    """How far the probability of yes that margins claim agrees with what is right.

    Args:
        claimed: mean probability of yes in each bin, `(bins,)`; bins hold equally many answers.
        right: share of answers in each bin where yes is right, `(bins,)`.
        counts: answers in each bin.
        error: the expected calibration error: their mean difference, weighted by the counts.
    """

    claimed: tuple[float, ...]
    right: tuple[float, ...]
    counts: tuple[int, ...]
    error: float


@dataclass(frozen=True)
class SampleResult:
    """One answer as a person reads it.

    Args:
        id: of the sample.
        cluster: the image that its statistics are clustered by.
        image: file of the picture; None if there is none.
        prompt: what was asked.
        target: what is right, in words.
        answer: raw text of the model; None if the sample failed.
        verdict: what the scorer made of it in a few words, such as "yes", "unparsed", "not there: knife".
        score: 1.0 for right, 0.0 for wrong, or a share between; None if the sample failed.
        parsed: what the scorer read in it, as a JSON value; None if the sample failed, too.
    """

    id: str
    cluster: str
    image: Path | None
    prompt: str
    target: str
    answer: str | None
    verdict: str
    score: float | None
    parsed: Any = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method on one task.

    Args:
        task: name of the task, such as "pope".
        protocol: id of the protocol, with deviations.
        method: label of the method, unique within a job: "greedy", "var", "var(moved_fraction=0.6)".
        parameters: the complete configuration of the method.
        samples: one each, in order of their ids; with several repeats of a sample, they follow each other.
        repeats: which repeat of its sample each is, `(samples,)` int.
        subset: which part of the images the samples are about, such as "83 of 500 images, 498 samples"; ""
            for all.
        unit: what the samples of a cluster share, see `vlmfix.evaluation.tasks.base.Task`.
        baseline_of: of which method it is a baseline, by label; "": of all methods; None: of none, it is
            tested.
        metrics: the headline figure first. Failed samples add nothing to them.
        tradeoff: names of the hallucination metric and of the recall metric that the report plots.
        parsers: for each parser or scorer the metrics that it gives, by its name; the one of the protocol
            gave `metrics`. Empty where there is one way only.
        objects: for each object the wrong answers and the number of times it was asked about or named.
        calibration: how far the margins of yes/no answers agree with what is right; None without margins.
        yes_no: whether samples are right or wrong, so that McNemar's test applies.
        counts: numbers of samples: "samples", "answered", "failed", "unparsed", "truncated".
        failures: numbers of failed samples by reason.
        costs: measured figures that differ from run to run: "seconds per sample", "forwards per token",
            "new tokens per sample", "peak memory" in bytes; None where unknown. What was taken over from
            another run counts with the seconds and passes that it took there.
        activity: what the method did, as numbers; empty for greedy.
        inactive: whether the method never acted.
        details: what else a result file records: data files with SHA-256 and rows, model, decoding, versions.
    """

    task: str
    protocol: str
    method: str
    parameters: Mapping[str, Any]
    samples: list[SampleResult]
    repeats: np.ndarray
    metrics: Sequence[AnyMetric]
    subset: str = ""
    unit: str = "image"
    baseline_of: str | None = None
    tradeoff: tuple[str, str] | None = None
    parsers: Mapping[str, Sequence[AnyMetric]] = field(default_factory=dict)
    objects: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    calibration: Calibration | None = None
    yes_no: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, float | None] = field(default_factory=dict)
    activity: Mapping[str, Any] = field(default_factory=dict)
    inactive: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def clusters(self) -> list[str]:
        """The image of each sample."""
        return [sample.cluster for sample in self.samples]
