"""The command `vlmfix score cats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.evaluation.tasks.scored_files import ScoredFiles, counts_table


def score(answers: Annotated[Path, typer.Option(help="Text file with an answer a line.")]) -> ScoredFiles:
    """Answers that say yes."""
    lines = answers.read_text(encoding="utf-8").splitlines()
    counts = {"answers": len(lines), "yes": sum(line.lower().startswith("yes") for line in lines)}
    return ScoredFiles(counts, [counts_table({"number": counts})], [])
