"""The command `vlmfix power`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmfix.cli.options import given_path


def power(
    pilot: Annotated[
        Path, typer.Argument(parser=given_path, help="The --output of a 'vlmfix eval' with several methods.")
    ],
) -> None:
    """How many images it takes to find a difference of 1, 2 or 5 points, by a pilot run."""
    from rich.table import Column, Table

    from vlmfix.cli.console import out
    from vlmfix.evaluation.analysis.comparison import compare
    from vlmfix.evaluation.analysis.power import POINTS, POWER, plan
    from vlmfix.evaluation.report.collect import gather
    from vlmfix.evaluation.runner.plan import read_plans

    comparisons = compare(gather(read_plans(pilot)).outcomes)
    shown = 0
    for comparison in comparisons:
        if comparison.main is None:
            continue
        heads = ("differ, %", "SE", "found now", *(f"{100 * points:g} pt" for points in POINTS))
        table = Table(Column("method", overflow="fold"), *(Column(head, justify="right") for head in heads))
        table.title = f"{comparison.title}: {comparison.main.name}, to {comparison.rows[0].outcome.method}"
        for row in comparison.rows[1:]:
            found = plan(row, comparison.main.name, comparison.main.group)
            if found is None:
                continue
            shown += 1
            table.add_row(
                row.outcome.method,
                "-" if found.discordant is None else f"{100 * found.discordant:.1f}",
                f"{100 * found.error:.2f}",
                f"{100 * found.least:.1f}",
                *(f"{images:,}" for images in found.needed),
            )
        if table.rows:
            out.print(table)
    if not shown:
        raise ValueError(
            f"{pilot} has no method whose difference to the first one has an error; run at least two methods "
            "that differ, on more images"
        )
    unit = comparisons[0].rows[0].outcome.unit
    out.print(
        "differ: share of samples that only one of the two has right. SE: standard error of the paired "
        f"difference, in points. found now: the smallest true difference that as many {unit}s as here find "
        f"with a power of {POWER:g}; then how many it takes for each difference. Two-sided at 5 %, for one "
        "method: several need more.",
        soft_wrap=True,
        highlight=False,
        style="dim",
    )
