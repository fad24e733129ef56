"""The command `vlmfix score amber_generative`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from vlmfix.evaluation.datasets.amber import read_texts
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.files.readers import sha256_of
from vlmfix.evaluation.tasks.protocol_files import load_protocol
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import NAME
from .metrics import counts_of
from .scorer import OfficialScore, official_score
from .task import AmberGenerative


def score(
    answers: Annotated[Path, typer.Option(help="JSON or JSON Lines with id and response.")],
    data: Annotated[
        Path,
        typer.Option(help="Folder with AMBER's queries, annotations and word lists, such as its data/."),
    ],
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
    """Objects in descriptions that are not in the picture (AMBER, arXiv 2311.07397)."""
    from vlmfix.evaluation.report.scored_samples import (  # takes a while, and the help needs none
        score_samples,
    )

    folder = DataFolder.find(data)
    protocol = load_protocol("amber_generative.512").on(folder.data_set(NAME))
    task = AmberGenerative(folder, protocol)
    samples = task.samples(data)
    keys = Keys(answer=answer_key, id=id_key)
    texts, notes = read_texts(answers, keys, samples, folder, partial=allow_partial)
    notes.append(f"nouns and similarity: {task.language.name}")
    files = {"answers": str(answers), "answers_sha256": sha256_of(answers)}
    for role, used in folder.used.items():
        files |= {role: used["file"], f"{role}_sha256": used["sha256"]} if "file" in used else {}
    found = score_samples(task, samples, texts, notes=notes, files=files)
    parsed = [
        None if text is None else task.judge(sample, text, truncated=False).parsed
        for sample, text in zip(samples, texts, strict=True)
    ]
    official = official_score(counts_of(samples, parsed, "official"))
    document = {**found.document, "official": asdict(official), "language": task.language.name}
    return ScoredFiles(document, [_table(official), *found.tables], found.notes)


def _table(official: OfficialScore) -> Table:
    heads = (Column(name, justify="right") for name in ("CHAIR", "Cover", "Hal", "Cog"))
    table = Table(*heads, title="AMBER by the official script, percent")
    table.add_row(*(f"{value:.1f}" for value in asdict(official).values()))
    return table
