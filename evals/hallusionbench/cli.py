"""The command `vlmfix score hallusionbench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.evaluation.tasks.scored_files import ScoredFiles
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS


def score(
    answers: Annotated[
        Path,
        typer.Option(
            help="JSON or JSON Lines with model_prediction inside the items, or with an answer and the keys "
            "that name its item: category, subcategory, set_id, figure_id, question_id."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="HallusionBench.json, or a folder with it; not needed where answers are inside."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="parse_all: all items; or parse_image_only: those with a picture, as VLMEvalKit. Figures "
            "of the two are not comparable."
        ),
    ] = "parse_all",
    parser: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(PARSERS)}, or all; repeatable.",
            show_default="strict, or vlmevalkit for pictures",
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated items.")
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of the answer in its record.", show_default="the one in use")
    ] = None,
) -> ScoredFiles:
    """Yes/no answers about original and edited figures (HallusionBench, arXiv 2310.14566)."""
    from .score_command import score_files

    wanted = list(dict.fromkeys(parser or ()))
    return score_files(
        answers,
        data,
        rule=protocol,
        parsers=list(PARSERS) if "all" in wanted else wanted,
        partial=allow_partial,
        answer_key=answer_key,
    )
