"""One file a benchmark: its items, how an answer is read, its figures; the registry finds them by itself."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.tasks.base import Task


def tasks() -> dict[str, type[Task]]:
    """Every benchmark by the name that the command line uses."""
    from evals.tasks.base import Task  # items are made by modules that need this package

    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {task.name: task for task in sorted(Task.__subclasses__(), key=lambda task: task.name)}
