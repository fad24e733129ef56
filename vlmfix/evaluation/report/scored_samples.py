"""Answers made elsewhere as results of a benchmark, with the figures and intervals of an evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Column, Table

from vlmfix.evaluation.analysis.comparison import Comparison, compare
from vlmfix.evaluation.analysis.estimates import Figure
from vlmfix.evaluation.analysis.results import Outcome, SampleResult
from vlmfix.evaluation.report.console_tables import even_chunks
from vlmfix.evaluation.report.formatting import title, value_texts
from vlmfix.evaluation.report.json_summary import summarise
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.base import Task
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

_WIDTH, _GAP = 80, 4
"""Of a terminal, and the narrowest part of a table that is not text."""


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
        parsers: which of the task's ways to read answers are shown; None: all.
        notes: what the reader has to know.
        files: paths and SHA-256 of what was read.
    """
    truncated = [False] * len(samples)
    scores = [
        None if text is None else task.judge(sample, text, truncated=False)
        for sample, text in zip(samples, texts, strict=True)
    ]
    found = task.metrics(samples, texts, truncated, scores)
    ways = {name: each for name, each in found.parsers.items() if parsers is None or name in parsers}
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
        parsers=ways if len(found.parsers) > 1 else {},
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
    return ScoredFiles(document, list(_tables(comparison, task.protocol)), list(notes))


def _tables(comparison: Comparison, protocol: Protocol) -> Iterator[Table]:
    """The figures of each way to read the answers, in as many tables as a narrow terminal needs."""
    [row] = comparison.rows
    ways = row.parsers or {protocol.parser or protocol.scorer: row.figures}
    for way, figures in ways.items():
        cells: dict[str, dict[str, str]] = {}
        for each in figures:
            cells.setdefault(title(each.metric), {})[each.metric.group] = _cell(each)
        groups = list(dict.fromkeys(each.metric.group for each in figures))
        if len(groups) == 1:
            yield _by_figure(f"{protocol.name} by {way}", figures)
            continue
        sizes = {
            head: max(map(len, (*head.split(), *"\n".join(column.values()).split("\n"))))
            for head, column in cells.items()
        }
        name = f"{protocol.name} by {way}, with 95 % intervals"
        for heads in even_chunks(sizes, _WIDTH - max(len("group"), *map(len, groups)) - _GAP):
            table = Table(Column("group", no_wrap=True), title=name)
            for head in heads:
                table.add_column(head, justify="right", width=sizes[head])
            for group in groups:
                row_cells = [cells[head].get(group, "") for head in heads]
                if any(row_cells):
                    table.add_row(group or "all", *row_cells)
            yield table
            name = f"{name.removesuffix(', continued')}, continued"


def _by_figure(head: str, figures: Sequence[Figure]) -> Table:
    """The figures of a benchmark without groups, one a row."""
    table = Table("figure", Column("value", justify="right"), Column("95 %", justify="right"), title=head)
    for each in figures:
        table.add_row(title(each.metric), *(value_texts(each) if each.is_defined else ("undefined", "")))
    return table


def _cell(figure: Figure) -> str:
    return "\n".join(value_texts(figure)) if figure.is_defined else "undefined"
