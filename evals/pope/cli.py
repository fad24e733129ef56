"""The command `vlmfix score pope`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS

from .score_command import as_json, score_files
from .scores import DEFAULT_PARSER, FIGURES, mean_of_splits


def score(
    answers: Annotated[
        list[Path],
        typer.Option(
            help="JSON, JSON Lines, CSV, TSV or XLSX with the answers of a split; repeatable. Or one file of "
            "all splits, such as LLaVA's, lmms-eval's or VLMEvalKit's."
        ),
    ],
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            help="POPE question file of that split; as many as --answers, or as splits in its one file.",
            show_default="the labels beside the answers",
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="LLaVA's llava_pope_test.jsonl, which names the split of each id.")
    ] = None,
    repope: Annotated[
        Path | None,
        typer.Option(help="Folder of RePOPE's corrected labels: the same answers, scored by these, too."),
    ] = None,
    parser: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(PARSERS)}, or all; repeatable. official gives the official script's figures.",
            show_default=DEFAULT_PARSER,
        ),
    ] = None,
    pairing: Annotated[
        str,
        typer.Option(
            help="How answers find their labels: position, id, question (image and object), or auto: by "
            "position under official, under other parsers by id where there are ids."
        ),
    ] = "auto",
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Leave out and count null answers, and missing, unknown and repeated ids."
        ),
    ] = False,
    answer_key: AnswerKeyOption = None,
    id_key: IdKeyOption = None,
    label_key: LabelKeyOption = None,
    sample: SampleOption = None,
    strip_prompt: StripPromptOption = False,
) -> ScoredFiles:
    """Yes/no answers about objects (POPE, arXiv 2305.10355)."""
    wanted = parser or [DEFAULT_PARSER]
    report = score_files(
        answers,
        labels or [],
        list(PARSERS) if "all" in wanted else list(dict.fromkeys(wanted)),
        pairing=pairing,
        allow_partial=allow_partial,
        keys=Keys(answer_key, id_key, label_key, sample, strip_prompt),
        questions=questions,
        repope=repope,
    )
    tables = []
    for split in report.splits:
        scores = {name: vars(each) for name, each in split.scores.items()}
        tables.append(_figures(f"POPE {escape(split.name)}, percent", scores))
        counts = {f"by {each['pairing']}": dict(each) for each in split.counts.values()}
        for each in counts.values():
            del each["pairing"]
        tables.append(counts_table(counts))
    if len(report.splits) > 1:
        tables.append(_figures(f"unweighted mean of {len(report.splits)} splits, percent", report.mean))
        pooled = {name: vars(each) for name, each in report.pooled.items()}
        # VLMEvalKit's "Overall" is the F1 of all rows.
        tables.append(_figures("all rows, percent (f1 of vlmevalkit: its Overall)", pooled))
    for fixed in report.corrected:
        title = f"RePOPE {escape(fixed.name)}: {fixed.rows} kept questions, {100 * fixed.yes_share:.1f} % yes"
        both = {f"{name}, POPE's labels": vars(score) for name, score in fixed.kept.items()}
        both |= {f"{name}, RePOPE's": vars(score) for name, score in fixed.scores.items()}
        tables.append(_figures(f"{title}, percent", both))
        right = {
            name: {"of turned labels": fixed.turned, "right": n} for name, n in fixed.turned_right.items()
        }
        tables.append(counts_table(right))
    if len(report.corrected) > 1:
        means = {
            name: mean_of_splits([each.scores[name] for each in report.corrected])
            for name in report.corrected[0].scores
        }
        tables.append(_figures(f"RePOPE, unweighted mean of {len(report.corrected)} splits, percent", means))
    return ScoredFiles(as_json(report), tables, report.notes)


def _figures(title: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    heads = (Column(name.replace("_", " ").removesuffix(" share"), justify="right") for name in FIGURES)
    table = Table(Column("parser", no_wrap=True), *heads, title=title)
    for name, values in figures.items():
        table.add_row(name, *(f"{100 * values[figure]:.2f}" for figure in FIGURES))
    return table
