"""The command `vlmfix scenes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.cli.console import out, progress_bar
from vlmfix.cli.options import path_option

MOST_SCENES = 10**9


def scenes(
    output: Annotated[Path, path_option("New folder for the data set.")],
    count: Annotated[int, typer.Option(min=1, max=MOST_SCENES, help="Number of scenes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Scenes with the same seed are the same.")] = 0,
) -> None:
    """Write a synthetic data set in COCO format: images, instances, captions, questions."""
    from vlmfix.evaluation.datasets import write_coco

    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{str(output)!r} is there already; name a new folder")
    with progress_bar("drawing", count) as advance:
        write_coco(output, count=count, seed=seed, progress=advance)
    out.print(f"{count} scenes in {output}", soft_wrap=True, highlight=False, markup=False)
