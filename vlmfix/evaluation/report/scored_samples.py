"""Answers made elsewhere as results of a benchmark, with the figures and intervals of an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Column, Table

from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.results import Outcome, SampleResult
from vlmfix.evaluation.report.formatting import title, value_texts
from vlmfix.evaluation.report.json_summary import summarise
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Task
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

# So many figures with their intervals fit beside each other in a terminal of 80 columns.
_ABREAST = 4


def score_samples(
    task: Task,
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    *,
    parsers: Collection[str] | None = None,
    notes: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> ScoredFiles:
    """Judge answers as the task judges those of its own runs.

    Args:
        task: with the protocol whose parser or scorer counts.
        samples: what was asked.
        texts: the raw answer to each; None: there is none, and the sample counts in no figure.
        parsers: which of the task's parsers or scorers are shown; None: all.
        notes: what the reader has to know.
        files: paths and SHA-256 of what was read.
    """
    truncated = [False] * len(samples)
    scores = [
        None if text is None else task.judge(sample, text, truncated=False)
        for sample, text in zip(samples, texts, strict=True)
    ]
    found = task.metrics(samples, texts, truncated, scores)
    shown = {name: each for name, each in found.parsers.items() if parsers is None or name in parsers}
    outcome = Outcome(
        task=task.name,
        protocol=task.protocol.id,
        method="answers",
        parameters={},
        samples=[
            SampleResult(
                id=sample.id,
                cluster=sample.cluster,
                image=None,
                prompt=sample.prompt,
                target=task.target(sample),
                answer=text,
                verdict="not answered" if score is None else score.verdict,
                score=None if score is None else score.value,
            )
            for sample, text, score in zip(samples, texts, scores, strict=True)
        ],
        repeats=np.zeros(len(samples), dtype=int),
        metrics=found.metrics,
        parsers=shown if len(shown) > 1 else {},
        objects=found.objects,
        yes_no=task.yes_no,
        counts={
            "samples": len(samples),
            "answered": sum(text is not None for text in texts),
            "unparsed": found.unparsed,
        },
    )
    [comparison] = compare([outcome])
    document: dict[str, Any] = {**summarise([comparison]), "files": dict(files or {}), "notes": list(notes)}
    document["samples"] = [
        {"id": each.id, "answer": each.answer, "target": each.target, "verdict": each.verdict}
        for each in comparison.rows[0].outcome.samples
    ]
    return ScoredFiles(document, _tables(comparison, task.protocol), list(notes))


def _tables(comparison: Comparison, protocol: Protocol) -> list[Table]:
    [row] = comparison.rows
    ways = row.parsers or {protocol.parser or protocol.scorer: row.figures}
    tables = []
    for way, figures in ways.items():
        names = list(dict.fromkeys(each.metric.name for each in figures))
        for start in range(0, len(names), _ABREAST):
            tables.append(_table(f"{protocol.name} by {way}", figures, names[start : start + _ABREAST]))
    return tables


def _table(head: str, figures: Sequence[Figure], names: Sequence[str]) -> Table:
    """Some of the figures, a row for each group that has one of them."""
    shown = [each for each in figures if each.metric.name in names]
    metrics = {each.metric.name: each.metric for each in shown}
    table = Table(Column("group", no_wrap=True), title=head)
    for metric in metrics.values():
        table.add_column(title(metric), justify="right")
    for group in dict.fromkeys(each.metric.group for each in shown):
        own = {each.metric.name: each for each in shown if each.metric.group == group}
        table.add_row(group or "all", *(_cell(own.get(name)) for name in metrics))
    return table


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return "undefined" if not figure.is_defined else "\n".join(value_texts(figure))
