"""Base of all benchmarks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocols import Protocol, Setting


@dataclass(frozen=True)
class Score:
    """What a scorer makes of one answer.

    Args:
        parsed: what it read, as a JSON value.
        verdict: the same in a few words.
        value: 1.0 for right, 0.0 for wrong, or a share between.
    """

    parsed: Any
    verdict: str
    value: float


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """The figures of one method on one task; see `vlmfix.evaluation.analysis.results.Outcome` for the fields.

    Args:
        metrics: the headline figure first.
        parsers: the metrics of every parser or scorer, where there are several.
        objects: wrong answers, and times asked about or named, by object.
        unparsed: number of answers that the parser could not read.
    """

    metrics: list[Metric]
    parsers: Mapping[str, list[Metric]] = field(default_factory=dict)
    objects: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unparsed: int = 0


class Task(ABC):
    """A benchmark: its samples, and how their answers are judged.

    Args:
        data: which it asks about.
        protocol: on that data set.
        seed: of the job, for what a benchmark draws.
    """

    name: ClassVar[str]
    """As the command line and the folder of the benchmark call it."""
    settings: ClassVar[Mapping[str, Setting]] = {}
    """The settings that its protocols may have beside the decoding, by name."""
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Its protocols by name, the default first, as in `protocols.yaml`; empty where that is beside it."""
    running: ClassVar[str] = "mean score"
    """What the mean score of the samples so far is called."""
    unit: ClassVar[str] = "image"
    """What the samples of a cluster share, in words: intervals are clustered by it, and parts drawn of it."""
    yes_no: ClassVar[bool] = False
    """Whether an answer is yes or no, and so right or wrong."""
    baselines: ClassVar[tuple[str, ...]] = ()
    """Baselines that a comparison on it needs beside greedy decoding, by name, see
    `vlmfix.evaluation.runner.baselines`."""
    tradeoff: ClassVar[tuple[str, str] | None] = None
    """The metric of hallucination, and the recall beside which it has to be read."""

    def __init__(self, data: DataFolder | HubData, protocol: Protocol, seed: int = 0) -> None:
        self.data = data
        self.protocol = protocol
        self.seed = seed

    @property
    def folder(self) -> DataFolder:
        """The data, for a benchmark that reads files.

        Raises:
            ValueError: they are a data set of the hub.
        """
        if isinstance(self.data, HubData):
            raise ValueError(f"{self.name} cannot use the data set {self.data.name}; give a folder of files")
        return self.data

    @abstractmethod
    def samples(self, built: Path) -> list[Sample]:
        """All samples in the order of their ids.

        Args:
            built: folder for questions and pictures that have to be built or unpacked.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is broken.
        """

    @abstractmethod
    def judge(self, sample: Sample, text: str, *, truncated: bool) -> Score:
        """Judge one answer by the protocol's parser or scorer.

        Args:
            sample: what was asked.
            text: raw answer.
            truncated: whether it was cut at the length limit.
        """

    @abstractmethod
    def metrics(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str | None],
        truncated: Sequence[bool],
        scores: Sequence[Score | None],
    ) -> TaskMetrics:
        """The figures over all samples.

        Args:
            samples: what was asked; several times, where there are several repeats.
            texts: raw answers; None: the sample failed, and adds nothing to any figure.
            truncated: which answers were cut at the length limit.
            scores: what `judge` made of each answer, its `parsed` as JSON holds it; None: the sample failed.
        """

    def target(self, sample: Sample) -> str:
        """What is right, in words."""
        return str(sample.target)
