"""The commands `vlmfix score NAME`: answers and captions made elsewhere, scored as their papers do.

Each benchmark that can do so has a module `cli` in its folder with a function `score`, whose parameters are
the options of the command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vlmfix.cli.console import out, print_json
from vlmfix.evaluation.tasks.registry import task_module, task_names

if TYPE_CHECKING:
    from vlmfix.evaluation.tasks.scored_files import ScoredFiles

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document with every item, and nothing else.")
]


class ScoreCommands(TyperGroup):
    """One command for each benchmark that scores files, imported when it is wanted."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The benchmarks that score files."""
        return [name for name in task_names() if task_module(name, "cli") is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a benchmark; None: there is none."""
        module = task_module(cmd_name, "cli") if cmd_name in task_names() else None
        if module is None:
            return None
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(_printing(module.score))
        return typer.main.get_command(single)


score_app = typer.Typer(
    cls=ScoreCommands,
    help="Score answers and captions made elsewhere; no model is needed.",
    no_args_is_help=True,
)


@score_app.callback()
def _any_benchmark() -> None:
    """Without a callback, a group that has no command of its own yet would be none."""


def _printing(score: Callable[..., ScoredFiles]) -> Callable[..., None]:
    """The function of a command that prints what `score` finds, with the option `--json`."""

    @functools.wraps(score)
    def command(*, json_: bool, **options: Any) -> None:
        found = score(**options)
        if json_:
            print_json(found.document)
            return
        for table in found.tables:
            out.print(table)
        for note in found.notes:
            out.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    own = inspect.signature(score, eval_str=True).parameters.values()
    added = inspect.Parameter("json_", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)
    command.__signature__ = inspect.Signature([*own, added])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in [*own, added]}
    return command
