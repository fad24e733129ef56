"""The command `vlmfix score vqa`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from vlmfix.cli.options import (
    AnswerKeyOption,
    IdKeyOption,
    LabelKeyOption,
    SampleOption,
    StripPromptOption,
)
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.scored_files import ScoredFiles, counts_table

from .score_command import as_json, score_files
from .scorer import ALIASES, DEFAULT_MODE, LEAVE_ONE_OUT, MODES


def score(
    results: Annotated[
        Path, typer.Option(help="JSON, JSON Lines, CSV, TSV or XLSX with question_id and answer.")
    ],
    annotations: Annotated[Path, typer.Option(help="VQA annotations: what people answered.")],
    questions: Annotated[
        Path | None, typer.Option(help="VQA questions, to check that every annotated id is there.")
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help=f"{', '.join((*MODES, *ALIASES))}: official normalises only where people differ and wants "
            "every question, always normalises always, m4c is TextVQA's evaluator, also called evalai."
        ),
    ] = DEFAULT_MODE,
    leave_one_out: Annotated[
        str, typer.Option(help=f"{' or '.join(LEAVE_ONE_OUT)}: dict drops equal answers that have no ids.")
    ] = LEAVE_ONE_OUT[0],
    index: Annotated[
        Path | None,
        typer.Option(
            help="File from running numbers (doc_id) to question_id, where the results have no ids."
        ),
    ] = None,
    answer_key: AnswerKeyOption = None,
    id_key: IdKeyOption = None,
    label_key: LabelKeyOption = None,
    sample: SampleOption = None,
    strip_prompt: StripPromptOption = False,
) -> ScoredFiles:
    """Short answers against the answers of ten people (VQA accuracy, arXiv 1505.00468)."""
    report = score_files(
        results,
        annotations,
        questions,
        mode=variant,
        leave_one_out=leave_one_out,
        keys=Keys(answer_key, id_key, label_key, sample, strip_prompt),
        index=index,
    )
    right = Column("questions", justify="right"), Column("accuracy", justify="right")
    table = Table("group", *right, title=f"VQA accuracy {report.mode}, percent")
    groups = {"overall": report.score.overall}
    groups |= {f"answer type: {name}": each for name, each in report.score.answer_types.items()}
    groups |= {f"question type: {name}": each for name, each in report.score.question_types.items()}
    for name, group in groups.items():
        table.add_row(escape(name), str(group.questions), f"{group.rounded:.2f}")
    measures = {"share_answered": f"{report.share_answered:.2%}", "mean_words": f"{report.mean_words:.2f}"}
    counts = counts_table({"number": {**report.counts, **measures}})
    return ScoredFiles(as_json(report), [table, counts], report.notes)
