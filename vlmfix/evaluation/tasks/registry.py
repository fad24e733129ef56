"""Registry of benchmarks: folders with a `task.py`, and what installed packages announce.

Benchmarks lie in the repository's `evals/`, in directories that the user names, or in installed packages
with an entry point of the group `vlmfix.tasks`. All are found by name without being read; each is loaded when
it is asked for, so that a broken one breaks only itself.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import vlmfix.evals
from vlmfix.errors import PACKAGES
from vlmfix.plugins import plugins
from vlmfix.settings import closest

if TYPE_CHECKING:
    from vlmfix.evaluation.tasks.base import Task

GROUP = "vlmfix.tasks"
"""Of entry points, whose value is `package.module:TaskClass`."""

_FILE = "task.py"


def task_names(directories: Sequence[Path] = ()) -> list[str]:
    """The names of all benchmarks, in alphabetical order; none of them is loaded.

    Args:
        directories: further ones than `evals/` that hold a folder for each benchmark.

    Raises:
        FileNotFoundError: a directory is not there, or holds no benchmark.
    """
    return sorted(_sources(directories))


def get_task(name: str, directories: Sequence[Path] = ()) -> type[Task]:
    """The benchmark of that name.

    Args:
        name: of its folder or entry point.
        directories: see `task_names`.

    Raises:
        ValueError: there is none, there are two, or it cannot be used; the message says where it is and why.
        FileNotFoundError: a directory is not there, or holds no benchmark.
    """
    source = _source(name, directories)
    try:
        return _load(name, source)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or "no reason given"
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"the task {name} cannot be used: {_place(source)}: {kind}{reason}") from error


def task_module(name: str, part: str, directories: Sequence[Path] = ()) -> ModuleType | None:
    """A module beside the `task.py` of a benchmark, such as `score_command`; None if it has none.

    Raises:
        ValueError: see `get_task`; a fault of the module itself is raised as it is.
    """
    source = _source(name, directories)
    if isinstance(source, Path):
        return _import(source.parent, part) if source.with_name(f"{part}.py").is_file() else None
    module = f"{source.module.rpartition('.')[0]}.{part}"
    return importlib.import_module(module) if importlib.util.find_spec(module) else None


def _sources(directories: Sequence[Path]) -> dict[str, list[Path | EntryPoint]]:
    """Where benchmarks lie, by name: the file `task.py` or the entry point."""
    found: dict[str, list[Path | EntryPoint]] = {}
    folders = dict.fromkeys(each.resolve() for each in (*map(Path, vlmfix.evals.__path__), *directories))
    for folder in folders:
        files = sorted(folder.glob(f"*/{_FILE}"))
        if not files:
            here = (
                "it has a task.py itself: name its parent"
                if (folder / _FILE).is_file()
                else "no NAME/task.py"
            )
            raise FileNotFoundError(f"{folder} holds no benchmark ({here}); check --tasks")
        for file in files:
            found.setdefault(file.parent.name, []).append(file)
    for point in plugins(GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _source(name: str, directories: Sequence[Path]) -> Path | EntryPoint:
    found = _sources(directories)
    if name not in found:
        known = sorted(found)
        raise ValueError(f"unknown task {name!r}{closest(name, known)}; tasks are {', '.join(known)}")
    if len(found[name]) > 1:
        places = " and ".join(map(_place, found[name]))
        raise ValueError(f"there are several tasks called {name}: {places}; rename or remove one")
    [source] = found[name]
    if isinstance(source, EntryPoint):
        PACKAGES.add(source.module.partition(".")[0])
    return source


def _place(source: Path | EntryPoint) -> str:
    if isinstance(source, Path):
        return str(source)
    package = source.dist.name if source.dist is not None else "an installed package"
    return f"{source.value} of {package}"


@functools.cache
def _load(name: str, source: Path | EntryPoint) -> type[Task]:
    from vlmfix.evaluation.tasks.base import Task

    if isinstance(source, EntryPoint):
        task = source.load()
        if not (isinstance(task, type) and issubclass(task, Task)):
            raise ValueError("it is no subclass of Task")
    else:
        module = _import(source.parent, "task")
        own = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
        classes = [each for each in own if isinstance(each, type) and issubclass(each, Task)]
        if len(classes) != 1:
            raise ValueError(f"it defines {len(classes)} subclasses of Task; it must define one")
        [task] = classes
    if inspect.isabstract(task):
        raise ValueError(f"{task.__name__} lacks {', '.join(sorted(task.__abstractmethods__))}")
    if getattr(task, "name", None) != name:
        raise ValueError(f"{task.__name__}.name is {getattr(task, 'name', None)!r}; it must be {name!r}")
    return task


def _import(folder: Path, part: str) -> ModuleType:
    """A module of a benchmark's folder, which may import its neighbours as `from .neighbour import ...`."""
    if folder.parent in [Path(each).resolve() for each in vlmfix.evals.__path__]:
        return importlib.import_module(f"vlmfix.evals.{folder.name}.{part}")
    package = f"vlmfix_task_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    PACKAGES.add(package)
    if package not in sys.modules:
        spec: ModuleSpec | None = ModuleSpec(package, None, is_package=True)
        if (folder / "__init__.py").is_file():
            spec = importlib.util.spec_from_file_location(package, folder / "__init__.py")
        assert spec is not None
        spec.submodule_search_locations = [str(folder)]
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        try:
            if spec.loader is not None:
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[package]
            raise
    return importlib.import_module(f"{package}.{part}")
