"""The command `vlmfix score chair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from vlmfix.cli.options import AnswerKeyOption, IdKeyOption, SampleOption, StripPromptOption
from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.scored_files import ScoredFiles, counts_table

from .score_command import as_json, score_file
from .vocabulary import VARIANTS, Vocabulary


def score(
    captions: Annotated[
        Path, typer.Option(help="JSON, JSON Lines, CSV, TSV or XLSX with image_id and caption.")
    ],
    instances: Annotated[
        list[Path], typer.Option(help="COCO instances that have the images; repeatable (train and val).")
    ],
    coco_captions: Annotated[
        list[Path] | None,
        typer.Option(
            help="COCO reference captions; repeatable. Without them figures are not the official ones."
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(
            help="File with the words of each class, such as the official list.",
            show_default="our own words",
        ),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(VARIANTS)}: official has the official script's errors (it never finds 'bus'), "
            "corrected fixes them, lemma needs NLTK data."
        ),
    ] = VARIANTS[0],
    drop_incomplete: Annotated[
        bool, typer.Option("--drop-incomplete", help="Judge captions without an incomplete last sentence.")
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count null, repeated and unknown captions.")
    ] = False,
    index: Annotated[
        Path | None,
        typer.Option(help="File from the running numbers of the captions to their images, where ids count."),
    ] = None,
    answer_key: AnswerKeyOption = None,
    id_key: IdKeyOption = None,
    sample: SampleOption = None,
    strip_prompt: StripPromptOption = False,
) -> ScoredFiles:
    """Objects in captions that are not in the image (CHAIR, arXiv 1809.02156)."""
    vocabulary = Vocabulary(variant=variant) if synonyms is None else Vocabulary.from_file(synonyms, variant)
    report = score_file(
        captions,
        instances,
        coco_captions or [],
        vocabulary=vocabulary,
        allow_partial=allow_partial,
        drop_incomplete=drop_incomplete,
        keys=Keys(answer_key, id_key, None, sample, strip_prompt),
        index=index,
    )
    found = report.score
    shares = {
        "CHAIRs": found.chair_s,
        "CHAIRi": found.chair_i,
        "recall": found.recall,
        "precision": found.precision,
        "F1": found.f1,
    }
    table = Table("figure", Column("value", justify="right"), title=f"CHAIR {vocabulary.variant}, percent")
    for name, share in shares.items():
        table.add_row(name, f"{100 * share:.1f}")
    table.add_row("tokens per caption", f"{found.length:.2f}")
    table.add_row("words per caption", f"{found.mean_words:.2f}")
    amounts = {
        "mentions": found.mentions,
        "hallucinated_mentions": found.hallucinated_mentions,
        "hallucinated_captions": found.hallucinated_captions,
    }
    counts = counts_table({"number": {**report.counts, **amounts}})
    return ScoredFiles(as_json(report), [table, counts], report.notes)
