"""The command `vlmfix report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.cli.options import given_path, path_option


def report(
    outputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            parser=given_path,
            help="The --output of 'vlmfix eval'; several are compared on one page.",
        ),
    ],
    output: Annotated[
        Path | None,
        path_option("Where the page goes: an HTML file or a folder. (default: into the first run)"),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Take records and manifests as they are, also edited ones.")
    ] = False,
) -> None:
    """Score the latest job of a folder again and write its report, also of a job that is not finished."""
    from vlmfix.cli.jobs import compare_runs, report_again

    if output is None and len(outputs) == 1:
        report_again(outputs[0], trust=trust)
    else:
        compare_runs(outputs, output, trust=trust)
