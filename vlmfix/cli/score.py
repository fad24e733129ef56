"""The commands `vlmfix score ...`: answers and captions made elsewhere, scored as their papers do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from vlmfix.cli.options import out, path_option, print_json
from vlmfix.evals.chair import score_command as chair_report
from vlmfix.evals.chair.scorer import VARIANTS, Vocabulary
from vlmfix.evals.pope import score_command as pope_report
from vlmfix.evals.pope.parsers import DEFAULT_PARSER, FIGURES, PARSERS
from vlmfix.evals.vqa import score_command as vqa_report
from vlmfix.evals.vqa.scorer import (
    ALIASES,
    DEFAULT_MODE,
    LEAVE_ONE_OUT,
    MODES,
)

score_app = typer.Typer(
    help="Score answers and captions made elsewhere; no model is needed.", no_args_is_help=True
)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document with every item, and nothing else.")
]


@score_app.command()
def pope(
    answers: Annotated[
        list[Path],
        path_option("JSON or JSON Lines with the answers of a split; repeatable."),
    ],
    labels: Annotated[
        list[Path],
        path_option("POPE question file of that split; as many as --answers."),
    ],
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
            help="How answers find their labels: position, id, or auto: by position under official, under "
            "other parsers by id where there are ids."
        ),
    ] = "auto",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated ids.")
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of the answer in its record.", show_default="the one in use")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Yes/no answers about objects (POPE, arXiv 2305.10355)."""
    wanted = parser or [DEFAULT_PARSER]
    report = pope_report.score_files(
        answers,
        labels,
        list(PARSERS) if "all" in wanted else list(dict.fromkeys(wanted)),
        pairing=pairing,
        allow_partial=allow_partial,
        answer_key=answer_key,
    )
    if json_:
        print_json(pope_report.as_json(report))
        return
    for split in report.splits:
        scores = {name: vars(each) for name, each in split.scores.items()}
        out.print(_pope_table(f"POPE {escape(split.name)}, percent", scores))
        counts = {f"by {each['pairing']}": each for each in split.counts.values()}
        out.print(_counts_table(counts))
    if len(report.splits) > 1:
        out.print(_pope_table(f"unweighted mean of {len(report.splits)} splits, percent", report.mean))
        pooled = {name: vars(each) for name, each in report.pooled.items()}
        out.print(_pope_table("all rows, percent", pooled))
        if "vlmevalkit" in report.distinct:
            overall = {"vlmevalkit": vars(report.distinct["vlmevalkit"])}
            out.print(_pope_table("Overall: distinct questions, percent", overall))
    _print_notes(report.notes)


@score_app.command()
def chair(
    captions: Annotated[Path, path_option("JSON or JSON Lines with image_id and caption.")],
    instances: Annotated[
        list[Path],
        path_option("COCO instances that have the images; repeatable (train and val)."),
    ],
    coco_captions: Annotated[
        list[Path] | None,
        path_option(
            "COCO reference captions; repeatable. Without them figures are not the official ones.",
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        path_option(
            "File with the words of each class, such as the official list.",
            show_default="our own words",
        ),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(VARIANTS)}: official has the official script's errors (it never finds 'bus'), "
            "corrected mends them, lemma needs NLTK data."
        ),
    ] = VARIANTS[0],
    drop_incomplete: Annotated[
        bool, typer.Option("--drop-incomplete", help="Judge captions without an incomplete last sentence.")
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count null, repeated and unknown captions.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Objects in captions that are not in the image (CHAIR, arXiv 1809.02156)."""
    vocabulary = Vocabulary(variant=variant) if synonyms is None else Vocabulary.from_file(synonyms, variant)
    report = chair_report.score_file(
        captions,
        instances,
        coco_captions or [],
        vocabulary=vocabulary,
        allow_partial=allow_partial,
        drop_incomplete=drop_incomplete,
    )
    if json_:
        print_json(chair_report.as_json(report))
        return
    score = report.score
    shares = {
        "CHAIRs": score.chair_s,
        "CHAIRi": score.chair_i,
        "recall": score.recall,
        "precision": score.precision,
        "F1": score.f1,
    }
    table = Table("figure", Column("value", justify="right"), title=f"CHAIR {vocabulary.variant}, percent")
    for name, share in shares.items():
        table.add_row(name, f"{100 * share:.1f}")
    table.add_row("tokens per caption", f"{score.length:.2f}")
    table.add_row("words per caption", f"{score.mean_words:.2f}")
    out.print(table)
    amounts = {
        "mentions": score.mentions,
        "hallucinated_mentions": score.hallucinated_mentions,
        "hallucinated_captions": score.hallucinated_captions,
    }
    out.print(_counts_table({"number": {**report.counts, **amounts}}))
    _print_notes(report.notes)


@score_app.command()
def vqa(
    results: Annotated[Path, path_option("JSON or JSON Lines with question_id and answer.")],
    annotations: Annotated[Path, path_option("VQA annotations: what people answered.")],
    questions: Annotated[
        Path | None,
        path_option("VQA questions, to check that every annotated id is there."),
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
    json_: JsonOption = False,
) -> None:
    """Short answers against those of ten people (VQA accuracy, arXiv 1505.00468)."""
    report = vqa_report.score_files(
        results, annotations, questions, mode=variant, leave_one_out=leave_one_out
    )
    if json_:
        print_json(vqa_report.as_json(report))
        return
    right = Column("questions", justify="right"), Column("accuracy", justify="right")
    table = Table("group", *right, title=f"VQA accuracy {report.mode}, percent")
    groups = {"overall": report.score.overall}
    groups |= {f"answer type: {name}": each for name, each in report.score.answer_types.items()}
    groups |= {f"question type: {name}": each for name, each in report.score.question_types.items()}
    for name, group in groups.items():
        table.add_row(escape(name), str(group.questions), f"{group.rounded:.2f}")
    out.print(table)
    measures = {"share_answered": f"{report.share_answered:.2%}", "mean_words": f"{report.mean_words:.2f}"}
    out.print(_counts_table({"number": {**report.counts, **measures}}))
    _print_notes(report.notes)


def _pope_table(title: str, figures: Mapping[str, Mapping[str, Any]]) -> Table:
    heads = (Column(name.replace("_", " ").removesuffix(" share"), justify="right") for name in FIGURES)
    table = Table(Column("parser", no_wrap=True), *heads, title=title)
    for name, values in figures.items():
        table.add_row(name, *(f"{100 * values[figure]:.2f}" for figure in FIGURES))
    return table


def _counts_table(counts: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a count, one column for each way of counting."""
    table = Table("count", *(Column(name, justify="right") for name in counts))
    keys = dict.fromkeys(key for each in counts.values() for key in each if key != "pairing")
    for key in keys:
        cells = (each[key] for each in counts.values())
        table.add_row(
            key.replace("_", " "),
            *(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells),
        )
    return table


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        out.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
