"""Methods of several run folders, with labels that say which run they are of where they have to."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmfix.evaluation.analysis.results import Outcome

COMPARISON = "comparison.html"


def labelled_by_run(runs: Mapping[Path, Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of all runs; methods of equal labels on one task and protocol get the name of their run.

    Args:
        runs: outcomes by the folder of their job.
    """
    counts = Counter((each.task, each.protocol, each.method) for several in runs.values() for each in several)
    found = []
    for name, outcomes in zip(_names(list(runs)), runs.values(), strict=True):
        for outcome in outcomes:
            place = outcome.task, outcome.protocol

            def label(method: str, place: tuple[str, str] = place, name: str = name) -> str:
                return f"{method} ({name})" if counts[*place, method] > 1 else method

            of = outcome.baseline_of and label(outcome.baseline_of)
            found.append(dataclasses.replace(outcome, method=label(outcome.method), baseline_of=of))
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, or the path where several have the same name."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)
    ]
