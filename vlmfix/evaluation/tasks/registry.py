"""One file a benchmark: its items, how an answer is read, its figures; the registry finds them by itself."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import vlmfix.evals

if TYPE_CHECKING:
    from vlmfix.evaluation.tasks.base import Task


def tasks() -> dict[str, type[Task]]:
    """Every benchmark by the name that the command line uses."""
    from vlmfix.evaluation.tasks.base import Task

    for folder in pkgutil.iter_modules(vlmfix.evals.__path__):
        importlib.import_module(f"vlmfix.evals.{folder.name}.task")
    return {task.name: task for task in sorted(Task.__subclasses__(), key=lambda task: task.name)}
