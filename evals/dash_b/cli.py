"""The command `vlmfix score dash_b`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.scored_files import ScoredFiles
from vlmfix.evaluation.tasks.yes_no_parsers import chosen_parsers

from .parsers import PARSERS


def score(
    answers: Annotated[
        Path,
        typer.Option(help="JSON or JSON Lines with gt, object_name, img_id and the raw answer in response."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with dash_benchmark_neg.json and dash_benchmark_pos.json; no pictures needed."
        ),
    ],
    parser: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(PARSERS)}, or all; repeatable. substring_yes gives the official figures.",
            show_default="strict",
        ),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated answers."),
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of the answer in its record.", show_default="response")
    ] = None,
    id_key: Annotated[
        str | None,
        typer.Option(
            help="Key of the id, such as dash_b/neg/coco/cup/1.png.", show_default="gt, object_name, img_id"
        ),
    ] = None,
) -> ScoredFiles:
    """Objects that models see where they are not (DASH-B, arXiv 2503.23573)."""
    from .score_command import score_file  # statistics take a while to import, and the help needs none

    parsers = chosen_parsers(parser or ["strict"], PARSERS)
    return score_file(answers, data, parsers, Keys(answer_key, id_key), partial=allow_partial)
