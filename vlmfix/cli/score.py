"""The commands `vlmfix score NAME`: answers and captions made elsewhere, scored as their papers do.

Each benchmark that can do so has a module `cli` in its folder with a function `score`, whose parameters are
the options of the command.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vlmfix.cli.console import out, print_json
from vlmfix.cli.options import TasksOption
from vlmfix.evaluation.tasks.registry import task_module, task_names
from vlmfix.failures import words

if TYPE_CHECKING:
    from vlmfix.evaluation.tasks.scored_files import ScoredFiles

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document with every sample, and nothing else.")
]


class ScoreCommands(TyperGroup):
    """One command for each benchmark that scores files, imported when it is wanted."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The benchmarks that score files; a broken one is left out with a warning."""
        found = []
        for name in task_names(_directories(ctx)):
            try:
                if _score_of(name, _directories(ctx)) is not None:
                    found.append(name)
            except Exception as error:  # the modules of others raise what they like
                warnings.warn(f"left out: {name} ({type(error).__name__}: {words(error)})", stacklevel=1)
        return found

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a benchmark; None: there is none."""
        directories = _directories(ctx)
        score = _score_of(cmd_name, directories) if cmd_name in task_names(directories) else None
        if score is None:
            return None
        single = typer.Typer(add_completion=False)
        single.command(cmd_name)(_printing(score))
        return typer.main.get_command(single)


def _directories(context: Any) -> Sequence[Path]:
    return context.params.get("tasks_from") or ()


def _score_of(name: str, directories: Sequence[Path]) -> Callable[..., ScoredFiles] | None:
    """What scores files for a benchmark; None: nothing does.

    Raises:
        ValueError: its module has no function `score`.
    """
    module = task_module(name, "cli", directories)
    if module is None:
        return None
    score: Callable[..., ScoredFiles] | None = getattr(module, "score", None)
    if score is None:
        raise ValueError(f"{module.__file__} has no function score; define it, or remove the file")
    return score


score_app = typer.Typer(
    cls=ScoreCommands,
    help="Score answers and captions made elsewhere; no model is needed.",
    no_args_is_help=True,
)


@score_app.callback()
def _before_any_benchmark(tasks_from: TasksOption = None) -> None:
    pass


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
