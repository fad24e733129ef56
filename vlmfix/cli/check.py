"""The command `vlmfix check`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmfix.cli.completion import complete_models
from vlmfix.cli.console import err, out
from vlmfix.cli.options import AllowMissingOption, DeviceOption, DtypeOption


def check(
    model: Annotated[
        str, typer.Option(help="Embedded model, folder or hub id.", autocompletion=complete_models)
    ],
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """Say which methods act on a model, or why not, by self-tests of the engine and a run of each method.

    The exit code is 1 if a self-test fails that the engine does not refuse, or a method cannot be relied on.
    """
    from rich.markup import escape
    from rich.table import Column, Table

    from vlmfix.cli.loading import load_model
    from vlmfix.probe.check import check as run

    loaded = load_model(model, device, dtype, allow_missing=allow_missing)
    with err.status("self-tests") as status:
        found = run(*loaded, progress=status.update)
    tests = Table(
        "self-test", "holds", Column("difference of logits, or why not", ratio=1), title=escape(model)
    )
    for test in found.tests:
        size = "" if test.difference is None else f"{test.difference:.1e}"
        holds = "yes" if test.passed else "refused" if test.refused else "no"
        tests.add_row(test.name, holds, escape(test.reason or size))
    table = Table("method", "verdict", Column("why not, or with which values", ratio=1))
    for verdict in found.verdicts:
        table.add_row(verdict.method, verdict.state, escape(verdict.reason))
    out.print(tests)
    out.print(table)
    wrong = [test.name for test in found.tests if not test.passed and not test.refused]
    if wrong or any(verdict.state == "fails" for verdict in found.verdicts):
        raise typer.Exit(1)
