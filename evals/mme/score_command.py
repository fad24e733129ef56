"""Files of MME with predictions inside, scored subtask by subtask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vlmfix.evaluation.files.readers import sha256_of

from .files import Line, read_subtask
from .parsers import PARSERS
from .scorer import Score, Sum, score, sum_of
from .subtasks import ALL, missing, sums_of


@dataclass(frozen=True)
class Answered:
    """The files of a folder.

    Args:
        lines: by subtask, each with a prediction.
        files: path and SHA-256 of each.
    """

    lines: Mapping[str, Sequence[Line]]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Scores:
    """The scores of each subtask by one parser, and their sums."""

    subtasks: Mapping[str, Score]
    sums: Mapping[str, Sum]


def read_folder(folder: Path) -> Answered:
    """The files `<subtask>.txt` of a folder, in the form of the calculation file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one is broken, or lacks a prediction.
    """
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{str(folder)!r} is no folder; give the one that holds existence.txt and the like"
        )
    lines: dict[str, list[Line]] = {}
    files: dict[str, str] = {}
    for subtask in ALL:
        path = folder / f"{subtask}.txt"
        if not path.is_file():
            continue
        lines[subtask] = read_subtask(path)
        without = [line.where for line in lines[subtask] if line.prediction is None]
        if without:
            raise ValueError(
                f"{without[0]}: no prediction, as in {len(without)} of {len(lines[subtask])} lines; add it "
                "as the fourth column, even if it is empty"
            )
        files |= {subtask: str(path), f"{subtask}_sha256": sha256_of(path)}
    if not lines:
        raise FileNotFoundError(
            f"{folder} has no file of MME, such as {ALL[0]}.txt or {ALL[-1]}.txt; check --data"
        )
    return Answered(lines, files)


def scores(answered: Answered, parser: str) -> Scores:
    """The figures by a parser; `mme_official` pairs lines as the calculation file does, others by image."""
    subtasks = {}
    for name, lines in answered.lines.items():
        labels = [line.label for line in lines]
        verdicts = [PARSERS[parser](line.prediction or "", line.label) for line in lines]
        official = parser == "mme_official"
        units = [index // 2 if official else line.image for index, line in enumerate(lines)]
        subtasks[name] = score(verdicts, labels, units)
    sums = {group or "total": sum_of(subtasks, over) for group, over in sums_of("all", subtasks).items()}
    return Scores(subtasks, sums)


def notes(answered: Answered) -> list[str]:
    """What a reader has to know beside the figures, in sentences."""
    found = []
    if lacking := missing(ALL, answered.lines):
        found.append(f"missing subtasks, which no sum includes: {', '.join(lacking)}")
    mixed = [name for name, lines in answered.lines.items() if _is_mixed(lines)]
    if mixed:
        found.append(
            f"the two lines of an image do not follow each other in {', '.join(mixed)}: acc+ by mme_official "
            "pairs lines of different images there, as the calculation file does; accuracy+ pairs by image"
        )
    return found


def _is_mixed(lines: Sequence[Line]) -> bool:
    pairs = list(pairwise(lines))[::2]
    return any(one.image != other.image for one, other in pairs)
