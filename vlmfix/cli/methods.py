"""The command `vlmfix methods`."""

from __future__ import annotations

from typing import Annotated

import typer

import vlmfix
from vlmfix.cli.completion import complete_models
from vlmfix.cli.console import out
from vlmfix.cli.options import AllowMissingOption, DeviceOption, DtypeOption


def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Embedded model, folder or hub id: say which methods work on it, with which values and from "
            "which profile, or why not.",
            autocompletion=complete_models,
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_missing: AllowMissingOption = False,
) -> None:
    """List the methods: what they change and where, what they cost and work with, where they come from."""
    if markdown and model is not None:
        raise ValueError(
            "--markdown prints the table of the README, which is of no --model; give one of them"
        )
    if model is None and (device, dtype, allow_missing) != ("auto", "auto", False):
        raise ValueError("--device, --dtype and --allow-missing are of a --model; name one")
    from rich.table import Column, Table

    from vlmfix.cli.display import describe_method, methods_markdown, suitability_table
    from vlmfix.cli.loading import load_model
    from vlmfix.models.digest import weights_digest

    if markdown:
        print(methods_markdown())
        return
    if model is not None:
        loaded = load_model(model, device, dtype, allow_missing=allow_missing)
        out.print(suitability_table(*loaded, model))
        out.print(f"weights: {weights_digest(loaded[0])}", soft_wrap=True, highlight=False)
        return
    for kind, are_baselines in (("method", False), ("baseline", True)):
        table = Table(kind, Column("what it does", ratio=1), show_lines=True)
        for name, cls in vlmfix.list_methods().items():
            if cls.info.is_baseline == are_baselines:
                table.add_row(name, describe_method(cls))
        out.print(table)
