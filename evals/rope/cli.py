"""The command `vlmfix score rope`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.evaluation.files.answers import Keys
from vlmfix.evaluation.tasks.scored_files import ScoredFiles

from .dataset import DEFAULT, SETTINGS
from .entries import PARTS, SPLITS


def score(
    answers: Annotated[
        list[Path],
        typer.Option(
            help="JSON from picture names, or names with -1 to -5, to answers; repeatable, by setting."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder with validation/ and train/ of ROPE; no pictures needed.")
    ],
    split: Annotated[str, typer.Option(help=f"{', '.join(SPLITS)}.")],
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(SETTINGS)}: of each --answers. With default and single, their gap is shown.",
            show_default=DEFAULT,
        ),
    ] = None,
    part: Annotated[str, typer.Option(help=f"{' or '.join(PARTS)}.")] = PARTS[0],
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out and count missing, unknown and repeated names.")
    ] = False,
    answer_key: Annotated[
        str | None, typer.Option(help="Of records: key of the answer.", show_default="the one in use")
    ] = None,
    id_key: Annotated[
        str | None, typer.Option(help="Of records: key of the name.", show_default="the one in use")
    ] = None,
) -> ScoredFiles:
    """Classes of five marked objects (ROPE, arXiv 2407.06192)."""
    from .score_command import score_files  # statistics take a while to import, and the help needs none

    keys = Keys(answer_key, id_key)
    return score_files(answers, setting or [DEFAULT], data, part, split, keys, partial=allow_partial)
