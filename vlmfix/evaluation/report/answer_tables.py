"""All answers of a job as one table, one row each."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmfix.atomic import beside, write_text
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.runner.plan import RunPlan

Row = Mapping[str, str | int | float | None]


def answer_rows(runs: Sequence[RunPlan], outcomes: Sequence[Outcome]) -> list[Row]:
    """One row for each answer; a sample without one has None for answer, parsed and score.

    Args:
        runs: of a job.
        outcomes: one a run, their samples in the order of the run.
    """
    return [
        {
            "task": outcome.task,
            "protocol": outcome.protocol,
            "method": outcome.method,
            "id": result.id,
            "repeat": repeat,
            "split": str(sample.meta.get("split", "")),
            "image": "" if result.image is None else result.image.name,
            "prompt": result.prompt,
            "target": result.target,
            "answer": result.answer,
            "parsed": None if result.answer is None else _plain(result.parsed),
            "verdict": result.verdict,
            "score": result.score,
        }
        for run, outcome in zip(runs, outcomes, strict=True)
        for (sample, repeat), result in zip(run.identities, outcome.samples, strict=True)
    ]


def _plain(parsed: Any) -> str | None:
    """What a scorer read: texts as they are, and all else as JSON."""
    if parsed is None or isinstance(parsed, str):
        return parsed
    return json.dumps(parsed, ensure_ascii=False)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write a table as Parquet; None is null."""
    import datasets  # takes a second

    kinds: dict[str, Any] = {"repeat": datasets.Value("int64"), "score": datasets.Value("float64")}
    features = datasets.Features({name: kinds.get(name, datasets.Value("string")) for name in rows[0]})
    datasets.disable_progress_bars()
    partial = beside(path)
    try:
        datasets.Dataset.from_list(list(rows), features=features).to_parquet(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
