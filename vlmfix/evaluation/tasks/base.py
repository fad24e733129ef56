"""What every benchmark asks: one question about one image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.files.hashing import digest

if TYPE_CHECKING:
    from vlmfix.evaluation.datasets.folder import DataFolder
    from vlmfix.evaluation.datasets.hub import HubData
    from vlmfix.evaluation.tasks.protocols import Protocol


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Args:
        id: unique over all splits, such as "pope/coco/random/17", "chair/000000000042", "vqa/262148000".
        cluster: the image, for statistics and to keep the questions of an image together.
        image: its file, which need not exist until it is asked about; None for a question without image.
        prompt: what the user asks, suffix included, without chat template.
        gold: what is right, as a JSON value: "yes" or "no", a list of classes, a list of ten answers.
        meta: JSON values that scorers and reports need, such as split, object, question (without suffix).
    """

    id: str
    cluster: str
    image: Path | None
    prompt: str
    gold: Any
    meta: Mapping[str, Any]


def content_hash(item: Item) -> str:
    """SHA-256 of what an item asks and holds right: id, prompt, gold and meta, but not where its image lies.

    Raises:
        ValueError: gold or meta hold NaN or an infinite number.
        TypeError: gold or meta hold what JSON cannot.
    """
    return digest({"id": item.id, "prompt": item.prompt, "gold": item.gold, "meta": dict(item.meta)})


@dataclass(frozen=True)
class Judgement:
    """What a scorer makes of one answer.

    Args:
        parsed: what it read, as a JSON value.
        verdict: the same in a few words.
        score: 1.0 for right, 0.0 for wrong, or a share between.
    """

    parsed: Any
    verdict: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Scores:
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
    """A benchmark: its items, and how their answers are judged.

    Args:
        data: which it asks about.
        protocol: on that data set.
    """

    name: ClassVar[str]
    running: ClassVar[str]
    """What the mean score of the items so far is called."""
    yes_no: ClassVar[bool] = False
    """Whether an answer is yes or no, and so right or wrong."""
    controls: ClassVar[tuple[str, ...]] = ()
    """Controls that a comparison on it needs beside greedy decoding, by name, see
    `vlmfix.evaluation.runner.baselines`."""
    tradeoff: ClassVar[tuple[str, str] | None] = None
    """The metric of hallucination, and the recall beside which it has to be read."""

    def __init__(self, data: DataFolder | HubData, protocol: Protocol) -> None:
        self.data = data
        self.protocol = protocol

    @abstractmethod
    def items(self, built: Path) -> list[Item]:
        """All items in the order of their ids.

        Args:
            built: folder for questions and pictures that have to be built or unpacked.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is broken.
        """

    @abstractmethod
    def judge(self, item: Item, text: str, *, cut: bool) -> Judgement:
        """Judge one answer by the protocol's parser or scorer.

        Args:
            item: what was asked.
            text: raw answer.
            cut: whether it was cut at the length limit.
        """

    @abstractmethod
    def scores(self, items: Sequence[Item], texts: Sequence[str | None], cut: Sequence[bool]) -> Scores:
        """The figures over all items.

        Args:
            items: what was asked; several times, where there are several samples.
            texts: raw answers; None: the item failed, and adds nothing to any figure.
            cut: which answers were cut at the length limit.
        """

    def gold(self, item: Item) -> str:
        """What is right, in words."""
        return str(item.gold)
