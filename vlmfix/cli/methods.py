"""The command `vlmfix methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmfix.cli.completion import complete_method_names, complete_models
from vlmfix.cli.console import out
from vlmfix.cli.options import AllowMissingOption, DeviceOption, DtypeOption


def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Methods to describe in full; without any, all are listed, stage by stage.",
            autocompletion=complete_method_names,
            show_default=False,
        ),
    ] = None,
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
    """List the methods: what they change, what they cost, what they are built from; or describe some."""
    if names and (markdown or model is not None):
        given = "--markdown" if markdown else "--model"
        raise ValueError(f"{given} is of all methods; leave out {', '.join(names)}")
    if markdown and model is not None:
        raise ValueError(
            "--markdown prints the table of the README, which is of no --model; give one of them"
        )
    if model is None and (device, dtype, allow_missing) != ("auto", "auto", False):
        raise ValueError("--device, --dtype and --allow-missing are of a --model; name one")
    from vlmfix.cli.display import (
        describe_method,
        methods_by_stage,
        methods_markdown,
        suitability_table,
    )
    from vlmfix.cli.loading import load_model
    from vlmfix.methods.registry import get_method
    from vlmfix.models.digest import weights_digest

    if markdown:
        print(methods_markdown())
        return
    if model is not None:
        loaded = load_model(model, device, dtype, allow_missing=allow_missing)
        out.print(suitability_table(*loaded, model))
        out.print(f"weights: {weights_digest(loaded[0])}", soft_wrap=True, highlight=False)
        return
    for each in [get_method(name) for name in names or ()]:
        out.print(describe_method(each), highlight=False)
    if not names:
        for table in methods_by_stage():
            out.print(table)
        out.print(
            "cost: forward passes per generated token. built from: the paper, its released code, or ~paper, "
            "a reconstruction where neither says everything. 'vlmfix methods NAME' says all of a method."
        )
