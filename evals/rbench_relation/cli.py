"""The command `vlmfix score rbench_relation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.scored_files import ScoredFiles
from vlmfix.evaluation.tasks.yes_no_parsers import PARSERS, chosen_parsers

from .questions import LEVELS, VARIANTS


def score(
    answers: Annotated[Path, typer.Option(help="JSON or JSON Lines with question_id and text.")],
    data: Annotated[Path, typer.Option(help="Folder with R-Bench's question files; no pictures needed.")],
    level: Annotated[str, typer.Option(help=f"{', '.join(LEVELS)}: which questions were answered.")],
    variant: Annotated[
        str,
        typer.Option(
            help=f"{' or '.join(VARIANTS)}: all counts every question once, official is the mean over five "
            "id lists with the official parser."
        ),
    ] = VARIANTS[0],
    parser: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(PARSERS)}, or all; repeatable. For the variant all.", show_default="official"
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated ids.")
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of the answer in its record.", show_default="the one in use")
    ] = None,
    id_key: Annotated[
        str | None, typer.Option(help="Key of the question id.", show_default="question_id")
    ] = None,
) -> ScoredFiles:
    """Yes/no answers about relations between objects (R-Bench, arXiv 2406.16449)."""
    from .score_command import score_file  # statistics take a while to import, and the help needs none

    if variant == "official" and parser:
        raise ValueError("--variant official has a parser of its own; leave --parser out")
    return score_file(
        answers,
        data,
        level,
        variant=variant,
        parsers=chosen_parsers(parser or ["official"], PARSERS),
        keys=Keys(answer_key, id_key),
        partial=allow_partial,
    )
