"""Results of a job in the formats of other programs, chosen by the name of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmfix.atomic import write_text
from vlmfix.evaluation.analysis.comparison import Comparison
from vlmfix.evaluation.analysis.results import Outcome
from vlmfix.evaluation.report.answer_tables import answer_rows, write_csv, write_parquet
from vlmfix.evaluation.report.latex import latex_tables
from vlmfix.evaluation.report.lmms_samples import write_lmms
from vlmfix.evaluation.runner.plan import RunPlan

FORMATS = {
    ".csv": "all answers",
    ".parquet": "all answers",
    ".tex": "the headline figures with intervals and marks of significance",
    "": "a folder of samples as lmms-eval writes them",
}
"""What is written under a name of each suffix."""


def check_exports(paths: Sequence[Path]) -> None:
    """Refuse names of no known format.

    Raises:
        ValueError: there is one.
    """
    for path in paths:
        if path.suffix.lower() not in FORMATS:
            known = ", ".join(f"{suffix or 'no suffix'} ({what})" for suffix, what in FORMATS.items())
            raise ValueError(
                f"cannot export to {path}: {path.suffix!r} is none of {known}; name another file"
            )
        if path.is_dir() != (not path.suffix) and path.exists():
            kind = "folder" if path.is_dir() else "file"
            raise ValueError(f"cannot export to {path}: it is a {kind}; name another one")


def export(
    path: Path, comparisons: Sequence[Comparison], runs: Sequence[RunPlan], outcomes: Sequence[Outcome]
) -> list[Path]:
    """Write the results of a job to a file or folder.

    Args:
        path: whose suffix is one of `FORMATS`.
        comparisons: of the outcomes.
        runs: of the job.
        outcomes: one a run.

    Returns:
        The files.

    Raises:
        OSError: they cannot be written.
    """
    if not path.suffix:
        return [file for run, own in zip(runs, outcomes, strict=True) for file in write_lmms(path, run, own)]
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    if suffix == ".tex":
        write_text(path, latex_tables(comparisons))
    else:
        write = write_csv if suffix == ".csv" else write_parquet
        write(path, answer_rows(runs, outcomes))
    return [path]
