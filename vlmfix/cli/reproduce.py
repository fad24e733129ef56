"""The command `vlmfix reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmfix.cli.completion import complete_models
from vlmfix.cli.console import out
from vlmfix.cli.options import path_option


def complete_tables(incomplete: str) -> list[str]:
    """Published tables that begin so."""
    from vlmfix.evaluation.reproduction import tables

    return [name for name in tables() if name.startswith(incomplete)]


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Published table, such as vhr/chair; without one, all are listed.",
            autocompletion=complete_tables,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="COCO root with the files of the benchmark; or synthetic, for a trial.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder of the published model, which has its name; or another model, for a trial.",
            autocompletion=complete_models,
        ),
    ] = None,
    limit: Annotated[
        str | None, typer.Option(help="Number, or share below 1, of the samples; a stable subset.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Prompts per forward pass, or auto; halved where memory runs out.")
    ] = None,
    output: Annotated[
        Path | None, path_option("Folder of the runs and the report. (default: runs/reproduce-NAME)")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ..., or auto. (default: auto)")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16, or auto: the checkpoint's. (default: auto)"),
    ] = None,
) -> None:
    """Repeat a published table as far as it is published: its figures beside the measured ones."""
    if name is None:
        _list()
        return
    from vlmfix.evaluation.reproduction import load_table

    table = load_table(name)
    if data is None:
        raise ValueError(f"{name} needs data; give a COCO root with --data DIR, or try --data synthetic")
    from vlmfix.cli.reproduction import run_table

    options: dict[str, Any] = {
        "data": data,
        "limit": limit,
        "batch_size": batch_size,
        "output": str(output or Path("runs") / f"reproduce-{name.replace('/', '-')}"),
        "device": device,
        "dtype": dtype,
    }
    run_table(table, model, options)


def _list() -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from vlmfix.evaluation.reproduction import load_table, tables

    shown = Table("table", "model", "rows", "source", box=SIMPLE_HEAD)
    shown.columns[0].no_wrap = True
    for table in map(load_table, tables()):
        model = table.model.rpartition("/")[2]
        shown.add_row(table.name, model, ", ".join(dict.fromkeys(table.methods)), table.source)
    out.print(shown)
    out.print(
        "vlmfix reproduce TABLE --data DIR repeats one; every source says what it does not say.",
        soft_wrap=True,
        highlight=False,
    )
