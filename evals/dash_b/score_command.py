"""A file of answers scored with DASH-B's figures, with intervals by object and by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from vlmfix.evaluation.analysis.intervals import ratio_estimate
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.analysis.statistics import Estimate
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.evaluation.report.formatting import number
from vlmfix.evaluation.report.json_summary import rounded
from vlmfix.evaluation.report.scored_samples import score_samples
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import default_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

from .files import read_texts
from .lists import are_published
from .metrics import dash_metrics, harmonic_estimate
from .parsers import PARSERS
from .task import DashB

HARMONIC = "harmonic mean"
_OVER_OBJECTS = ("macro TNR", "objects with TNR 0")

Intervals = Mapping[str, Mapping[str, Estimate]]
"""For each figure its estimate by object and by image."""


def score_file(
    answers: str | Path, data: str | Path, parsers: Sequence[str], keys: Keys, *, partial: bool = False
) -> ScoredFiles:
    """Score answers against the lists of DASH-B.

    Args:
        answers: see `files.read_texts`.
        data: folder with the lists; the pictures need not be there.
        parsers: names in `PARSERS`.
        keys: of the records of the answers.
        partial: leave out and count what has no partner, instead of refusing it.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what it should be, or the answers are of other lists.
    """
    folder = DataFolder.find(data)
    task = DashB(folder, default_protocol("dash_b").with_(parser=parsers[0]))
    samples = task.samples(Path())
    texts, notes = read_texts(answers, samples, keys, partial=partial)
    if not folder.is_synthetic and not are_published(folder):
        notes.append("the lists are not the present ones of DASH-B: figures compare with no published ones")
    files = {"answers": str(answers), "answers_sha256": sha256_of(answers)}
    for used in folder.used.values():
        files |= {Path(used["file"]).name: used["sha256"]}
    found = score_samples(task, samples, texts, notes=notes, files=files)
    intervals, by_object, tables = {}, {}, []
    for parser in parsers:
        verdicts = _verdicts(parser, samples, texts)
        metrics = dash_metrics(samples, texts, verdicts)
        intervals[parser] = both_intervals(metrics, samples)
        by_object[parser] = _tnr_by_object(samples, texts, verdicts)
        tables += [_figures(parser, intervals[parser]), *_by_source(parser, metrics)]
    document = {
        **found.document,
        "both_intervals": rounded(intervals),
        "tnr_by_object": rounded(by_object),
    }
    return ScoredFiles(document, tables, found.notes)


def both_intervals(metrics: Sequence[Metric], samples: Sequence[Sample]) -> Intervals:
    """The figures of all pictures with intervals by object and by image; those over objects by object."""
    main = {each.name: each for each in metrics if not each.group}
    names = list(main)
    names.insert(names.index("TPR") + 1, HARMONIC)
    labels = {"object": [sample.cluster for sample in samples], "image": [sample.id for sample in samples]}
    found: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    for way, of_samples in labels.items():
        clusters = np.unique(of_samples, return_inverse=True)[1]
        for name in names:
            if name == HARMONIC:
                found[name][way] = harmonic_estimate(main["TNR"], main["TPR"], clusters)
            elif not main[name].is_defined:
                found[name][way] = Estimate(0.0, None, None, None, 0, 0, "undefined")
            elif way == "object" or name not in _OVER_OBJECTS:
                found[name][way] = ratio_estimate(main[name], clusters)
    return found


def _verdicts(parser: str, samples: Sequence[Sample], texts: Sequence[str | None]) -> list[Verdict | None]:
    return [
        None if text is None else PARSERS[parser](text, sample.target)
        for sample, text in zip(samples, texts, strict=True)
    ]


def _tnr_by_object(
    samples: Sequence[Sample], texts: Sequence[str | None], verdicts: Sequence[Verdict | None]
) -> dict[str, float]:
    asked: defaultdict[str, list[bool]] = defaultdict(list)
    for sample, text, verdict in zip(samples, texts, verdicts, strict=True):
        if text is not None and sample.target == "no":
            asked[sample.meta["object"]].append(verdict == "no")
    return {name: sum(right) / len(right) for name, right in sorted(asked.items())}


def _figures(parser: str, intervals: Intervals) -> Table:
    heads = ("value", "95 % by object", "95 % by image")
    table = Table("figure", *(Column(head, justify="right") for head in heads))
    clusters = {way: each.clusters for way, each in intervals["accuracy"].items()}
    table.title = f"DASH-B by {parser}, percent ({clusters['object']} objects, {clusters['image']} images)"
    for name, ways in intervals.items():
        by_object = ways["object"]
        value = (
            "undefined"
            if by_object.source == "undefined"
            else number(by_object.value, percent=True, further=1)
        )
        table.add_row(name, value, *(_interval(ways.get(way)) for way in ("object", "image")))
    return table


def _by_source(parser: str, metrics: Sequence[Metric]) -> list[Table]:
    """The figures of each source, whose intervals stand in the document."""
    groups = list(dict.fromkeys(each.group for each in metrics if each.group))
    if not groups:
        return []
    names = list(dict.fromkeys(each.name for each in metrics if each.group))
    table = Table("source", *(Column(name, justify="right") for name in names), title=f"{parser}, percent")
    values = {(each.group, each.name): number(each.value, percent=True, further=1) for each in metrics}
    for group in groups:
        table.add_row(escape(group), *(values[group, name] for name in names))
    return [table]


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"[{', '.join(number(end, percent=True, further=1) for end in (estimate.low, estimate.high))}]"
