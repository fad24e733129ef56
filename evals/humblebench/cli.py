"""The command `vlmfix score humblebench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.scored_files import ScoredFiles


def score(
    answers: Annotated[
        Path,
        typer.Option(
            help="JSON Lines or JSON with question_id and prediction, as a rule with question, label, type "
            "and image, too."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Rows of the data as JSON or JSON Lines; not needed where answers carry them."),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help="What was asked: humble; humble_e, without the right option; or humble_gn, with a picture "
            "of noise."
        ),
    ] = "humble",
    humble: Annotated[
        Path | None,
        typer.Option(help="Answers of the same model to humble, to be shown beside those to humble_e."),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated ids.")
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of the answer in its record.", show_default="the one in use")
    ] = None,
    id_key: Annotated[
        str | None, typer.Option(help="Key of the question's id.", show_default="the one in use")
    ] = None,
) -> ScoredFiles:
    """Multiple choice in which none may be right (HumbleBench, arXiv 2509.09658), by both of its parsers."""
    from .score_command import score_files

    return score_files(
        answers,
        data,
        variant=variant,
        humble=humble,
        partial=allow_partial,
        keys=Keys(answer=answer_key, id=id_key),
    )
