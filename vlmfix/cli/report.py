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
    export: Annotated[
        list[Path] | None,
        path_option(
            "Write the results there, too; repeatable. NAME.csv and NAME.parquet get all answers, NAME.tex "
            "the headline table, a folder the samples as lmms-eval writes them.",
            "--export",
        ),
    ] = None,
) -> None:
    """Score the latest job of a folder again and write its report, also of a job that is not finished."""
    from vlmfix.cli.jobs import report_again

    report_again(outputs, output, trust=trust, exports=export or [])
