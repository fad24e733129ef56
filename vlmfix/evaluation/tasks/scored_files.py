"""Results of the command `vlmfix score NAME` of a benchmark, to be printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table


@dataclass(frozen=True)
class ScoredFiles:
    """Figures of files of answers.

    Args:
        document: everything, with every sample, for `--json`.
        tables: the figures for people.
        notes: what a reader has to know beside the figures, in sentences.
    """

    document: Mapping[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str]


def counts_table(counts: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a count, one column for each way of counting.

    Args:
        counts: by the title of the column, then by the name of the count.
    """
    table = Table("count", *(Column(name, justify="right") for name in counts))
    for key in dict.fromkeys(key for each in counts.values() for key in each):
        cells = (each[key] for each in counts.values())
        table.add_row(
            key.replace("_", " "),
            *(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells),
        )
    return table
