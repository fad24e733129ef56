"""The command `vlmfix score amber`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from vlmfix.evaluation.datasets.amber import read_texts
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import GROUPS
from .official import EPSILON, EXISTENCE_EPSILON, OfficialScore, official_score
from .parsers import PARSERS, amber_official
from .task import Amber

_DEFAULT = "strict"


def score(
    answers: Annotated[Path, typer.Option(help="JSON or JSON Lines with id and response.")],
    data: Annotated[
        Path, typer.Option(help="Folder with AMBER's query and annotation files, such as its data/.")
    ],
    parser: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(PARSERS)}, or all; repeatable. amber_official gives the figures of the "
            "official script, too.",
            show_default=_DEFAULT,
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated ids.")
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of the answer in its record.", show_default="the one in use")
    ] = None,
    id_key: Annotated[
        str | None, typer.Option(help="Key of the id in its record.", show_default="the one in use")
    ] = None,
) -> ScoredFiles:
    """Yes/no answers about objects, attributes and relations (AMBER, arXiv 2311.07397)."""
    from vlmfix.evaluation.report.scored_samples import (  # takes a while, and the help needs none
        score_samples,
    )

    wanted = list(dict.fromkeys(parser or [_DEFAULT]))
    wanted = list(PARSERS) if "all" in wanted else wanted
    protocols = [load_protocol("amber.yes-no/custom").with_(parser=name) for name in wanted]
    folder = DataFolder.find(data)
    task = Amber(folder, protocols[0])
    samples = task.samples(data)
    keys = Keys(answer=answer_key, id=id_key)
    texts, notes = read_texts(answers, keys, samples, folder, partial=allow_partial)
    files = {"answers": str(answers), "answers_sha256": sha256_of(answers)}
    for role, used in folder.used.items():
        files |= {role: used["file"], f"{role}_sha256": used["sha256"]}
    found = score_samples(task, samples, texts, parsers=wanted, notes=notes, files=files)
    if "amber_official" not in wanted:
        return found
    blocks = _official(samples, texts)
    document = {**found.document, "official": {group: asdict(each) for group, each in blocks.items()}}
    return ScoredFiles(document, [_table(blocks), *found.tables], found.notes)


def _official(samples: Sequence[Sample], texts: Sequence[str | None]) -> dict[str, OfficialScore]:
    """The official figures of the answers that are there, by group."""
    found = {}
    for group in ("all", *GROUPS):
        rows = [
            (amber_official(text, sample.target), sample.target)
            for sample, text in zip(samples, texts, strict=True)
            if text is not None and (group == "all" or group in sample.meta["groups"])
        ]
        if rows:
            verdicts, labels = zip(*rows, strict=True)
            epsilon = EXISTENCE_EPSILON if group == "existence" else EPSILON
            found[group] = official_score(verdicts, labels, epsilon=epsilon)
    return found


def _table(blocks: Mapping[str, OfficialScore]) -> Table:
    heads = (Column(name, justify="right") for name in ("accuracy", "precision", "recall", "F1"))
    table = Table("group", *heads, title="AMBER by the official script, percent; no is positive")
    for group, each in blocks.items():
        table.add_row(group, *(f"{value:.1f}" for value in asdict(each).values()))
    return table
