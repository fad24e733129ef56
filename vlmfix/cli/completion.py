"""What the shell offers for an option or argument when TAB is pressed; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

import typer

from vlmfix.evaluation.tasks.registry import task_names
from vlmfix.methods.registry import AUTO, GREEDY, method_names
from vlmfix.models.embedded import EMBEDDED


def complete_methods(incomplete: str) -> list[str]:
    """Methods that begin so; after `a+`, each of the others joined to it."""
    *before, start = incomplete.split("+")
    names = [*method_names(), *([] if before else [GREEDY, AUTO])]
    return ["+".join([*before, name]) for name in names if name.startswith(start) and name not in before]


def complete_method_names(incomplete: str) -> list[str]:
    """Methods that begin so, one at a time."""
    return [name for name in method_names() if name.startswith(incomplete)]


def complete_tasks(context: typer.Context, incomplete: str) -> list[str]:
    """Benchmarks that begin so, also of the directories that `--tasks` names."""
    try:
        names = task_names(context.params.get("tasks_from") or ())
    except OSError:  # no such directory; the command will say so
        names = task_names()
    return [name for name in names if name.startswith(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """Embedded models and folders that begin so."""
    given, slash, start = incomplete.rpartition("/")
    folders: list[str] = []
    try:
        for path in Path(f"{given}{slash}" or ".").expanduser().iterdir():
            if path.is_dir() and path.name.startswith(start) and (start or not path.name.startswith(".")):
                folders.append(f"{given}{slash}{path.name}")
    except (OSError, RuntimeError):  # no such folder, or no such home
        pass
    return [name for name in EMBEDDED if name.startswith(incomplete)] + sorted(folders)
