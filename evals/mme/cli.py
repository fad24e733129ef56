"""The command `vlmfix score mme`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import samples_of
from .parsers import PARSERS
from .score_command import Scores, notes, read_folder, scores
from .task import Mme

_DEFAULT = "mme_official"


def score(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with a file for each subtask, such as existence.txt: image, question, label and "
            "prediction, with tabs between."
        ),
    ],
    parser: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(PARSERS)}, or all; repeatable. mme_official gives the figures of MME's "
            "calculation file.",
            show_default=_DEFAULT,
        ),
    ] = None,
) -> ScoredFiles:
    """Pairs of yes/no questions about images (MME, arXiv 2306.13394)."""
    from vlmfix.evaluation.report.scored_samples import (  # takes a while, and the help needs none
        score_samples,
    )

    wanted = list(dict.fromkeys(parser or [_DEFAULT]))
    wanted = list(PARSERS) if "all" in wanted else wanted
    protocols = [load_protocol("mme.official/custom").with_(parser=name) for name in wanted]
    answered = read_folder(data)
    found = score_samples(
        Mme(DataFolder(), protocols[0]),
        samples_of(answered.lines, protocols[0]),
        [line.prediction for lines in answered.lines.values() for line in lines],
        parsers=wanted,
        notes=notes(answered),
        files=answered.files,
    )
    by_parser = {name: scores(answered, name) for name in wanted}
    document = {**found.document, "scores": {name: _as_json(each) for name, each in by_parser.items()}}
    tables = [table for name, each in by_parser.items() for table in _tables(name, each)]
    return ScoredFiles(document, [*tables, *found.tables], found.notes)


def _tables(parser: str, found: Scores) -> Iterator[Table]:
    heads = ("questions", "score", "acc", "acc+", "other")
    table = Table(Column("subtask", no_wrap=True), *(Column(head, justify="right") for head in heads))
    table.title = f"MME by {parser}"
    for name, each in found.subtasks.items():
        figures = (f"{each.score:.2f}", f"{each.acc:.4f}", f"{each.acc_plus:.4f}")
        table.add_row(name, str(each.questions), *figures, str(each.other))
    yield table
    sums = Table("sum", Column("score", justify="right"), "subtasks", title=f"MME by {parser}, sums")
    for name, total in found.sums.items():
        there = f"partial: {len(total.missing)} of {total.subtasks} missing" if total.missing else "all"
        sums.add_row(name, f"{total.score:.2f}", there)
    yield sums


def _as_json(found: Scores) -> dict[str, Any]:
    return {
        "subtasks": {
            name: {**asdict(each), "acc": each.acc, "acc_plus": each.acc_plus, "score": each.score}
            for name, each in found.subtasks.items()
        },
        "sums": {
            name: {"score": each.score, "partial": bool(each.missing), "missing": list(each.missing)}
            for name, each in found.sums.items()
        },
    }
