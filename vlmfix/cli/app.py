"""The command line `vlmfix`: its commands, and the options before them."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer

import vlmfix
from vlmfix.cli.calibrate import calibrate
from vlmfix.cli.chat import chat
from vlmfix.cli.check import check
from vlmfix.cli.console import print_warning
from vlmfix.cli.errors import OneLineErrors
from vlmfix.cli.eval import evaluate
from vlmfix.cli.explain import explain
from vlmfix.cli.generate import generate
from vlmfix.cli.methods import methods
from vlmfix.cli.power import power
from vlmfix.cli.report import report
from vlmfix.cli.reproduce import reproduce
from vlmfix.cli.scenes import scenes
from vlmfix.cli.score import score_app
from vlmfix.cli.serve import serve
from vlmfix.cli.tune import tune

app = typer.Typer(
    cls=OneLineErrors,
    help="Decoding-time hallucination mitigation for vision-language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vlmfix {vlmfix.__version__}")
        raise typer.Exit


@app.callback()
def before_any_command(
    context: typer.Context,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar="VLMFIX_DEBUG", help="Show the traceback of an error; at any place of the line."
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Warnings, too, are one line on stderr."""
    group: Any = context.command
    group.debug = debug
    warnings.showwarning = print_warning


app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(explain)
app.command()(methods)
app.command()(check)
app.command()(calibrate)
app.command()(scenes)
app.command()(tune)
app.command("eval")(evaluate)
app.command()(report)
app.command()(power)
app.command()(reproduce)
app.add_typer(score_app, name="score")
