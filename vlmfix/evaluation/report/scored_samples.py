"""Answers made elsewhere as results of a benchmark, with the figures and intervals of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from vlmfix.evaluation.tasks.scored_files import ScoredFiles


def score_samples(
    task: Task,
    samples: Sequence[Sample],
    texts: Sequence[str | None],
    *,
    notes: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    ways: Sequence[str] = (),
) -> ScoredFiles:
    """Judge answers as the task judges those of its own runs.

    Args:
        task: with the protocol whose parser or scorer counts.
        samples: what was asked.
        texts: the raw answer to each; None: there is none, and the sample counts in no figure.
        notes: what the reader has to know.
        files: paths and SHA-256 of what was read.
        ways: parsers or scorers whose tables are shown, of a task with several; none: all.
    """
    truncated = [False] * len(samples)
    scores = [
        None if text is None else task.judge(sample, text, truncated=False)
        for sample, text in zip(samples, texts, strict=True)
    ]
    found = task.metrics(samples, texts, truncated, scores)
    outcome = Outcome(
        task=task.name,
        protocol=task.protocol.id,
        method="answers",
        unit=task.unit,
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
        parsers=found.parsers if len(found.parsers) > 1 else {},
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
    return ScoredFiles(document, list(_tables(comparison, ways)), list(notes))


def _tables(comparison: Comparison, shown: Sequence[str]) -> list[Table]:
    [row] = comparison.rows
    ways = row.parsers or {comparison.protocol: row.figures}
    tables = []
    for way in shown or ways:
        figures = ways[way]
        groups = list(dict.fromkeys(each.metric.group for each in figures))
        table = _by_figure(figures) if len(groups) == 1 else _by_group(figures, groups)
        table.title = f"{comparison.task} by {way}"
        tables.append(table)
    return tables


def _by_figure(figures: Sequence[Figure]) -> Table:
    table = Table("figure", Column("value", justify="right"), Column("95 %", justify="right"))
    for each in figures:
        table.add_row(title(each.metric), *(value_texts(each) if each.is_defined else ("undefined", "")))
    return table


def _by_group(figures: Sequence[Figure], groups: Sequence[str]) -> Table:
    names = {each.metric.name: each.metric for each in figures}
    heads = (Column(title(metric), justify="right") for metric in names.values())
    table = Table(Column("group", no_wrap=True), *heads)
    for group in groups:
        own = {each.metric.name: each for each in figures if each.metric.group == group}
        table.add_row(group or "all", *(_cell(own.get(name)) for name in names))
    return table


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return "undefined" if not figure.is_defined else " ".join(value_texts(figure))
