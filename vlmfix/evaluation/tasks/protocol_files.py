"""Protocols by id: what the benchmarks declare, and files of the user."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmfix.evaluation.tasks.base import Task
from vlmfix.evaluation.tasks.protocols import Protocol, read_protocols
from vlmfix.evaluation.tasks.registry import get_task, task_names
from vlmfix.settings import closest

FILE = "protocols.yaml"
"""Beside the module of a task; a task may declare its protocols in its class instead."""


@dataclass(frozen=True)
class _Declared:
    protocols: Mapping[str, Protocol]
    default: Protocol
    default_synthetic: Protocol


def protocols(directories: Sequence[Path] = ()) -> dict[str, Protocol]:
    """The protocols of all benchmarks by name; a benchmark that cannot be loaded adds none.

    Args:
        directories: of benchmarks, see `registry.task_names`.

    Raises:
        ValueError: two benchmarks have a protocol of one name.
    """
    return _all(directories)[0]


def load_protocol(id: str | Path, directories: Sequence[Path] = ()) -> Protocol:
    """A protocol of a benchmark by id, with its data set or without, or the one in a YAML file of the user.

    A file has the form of the benchmarks' `protocols.yaml`, with one protocol under a name of its own.

    Args:
        id: of the protocol, or the path of the file.
        directories: of benchmarks, see `registry.task_names`.

    Raises:
        ValueError: no protocol has that id, or the file does not hold exactly one valid new protocol.
        FileNotFoundError: there is no such file.
    """
    known, broken = _all(directories)
    path = Path(id)
    if path.suffix in (".yaml", ".yml"):
        return _of_user(path, known, directories)
    name, slash, data_set = str(id).partition("/")
    if name not in known:
        also = f" ({'; '.join(broken)})" if broken else ""
        raise ValueError(
            f"unknown protocol {str(id)!r}{closest(name, known)}; known protocols: {', '.join(known)}; or "
            f"give a YAML file{also}"
        )
    return known[name].on(data_set) if slash else known[name]


def default_protocol(task: str, data_set: str = "coco", directories: Sequence[Path] = ()) -> Protocol:
    """What a task uses if nobody says otherwise; on synthetic scenes, what the embedded models can answer.

    Raises:
        ValueError: unknown task, or its protocols are broken.
    """
    declared = _declared(get_task(task, directories))
    return declared.default_synthetic if data_set == "synthetic" else declared.default


def _all(directories: Sequence[Path]) -> tuple[dict[str, Protocol], list[str]]:
    """All protocols by name, and what is wrong with the benchmarks that have none."""
    found: dict[str, Protocol] = {}
    broken = []
    for task in task_names(directories):
        try:
            own = _declared(get_task(task, directories)).protocols
        except (OSError, ValueError) as error:
            broken.append(str(error))
            continue
        for name, protocol in own.items():
            if name in found:
                raise ValueError(
                    f"the tasks {found[name].task} and {task} both have a protocol {name}; rename one"
                )
            found[name] = protocol
    return found, broken


def _declared(task: type[Task]) -> _Declared:
    path = Path(inspect.getfile(task)).with_name(FILE)
    return _read(task, path.read_bytes() if path.is_file() else b"")


@functools.cache
def _read(task: type[Task], content: bytes) -> _Declared:
    """What a benchmark declares; as long as its file has the same content, parsed once."""
    path = Path(inspect.getfile(task)).with_name(FILE)
    if task.protocols:
        found = _checked(path.with_name(Path(inspect.getfile(task)).name), task, task.protocols)
        default = default_synthetic = next(iter(found))
    else:
        file = read_protocols(path)
        if file.task != task.name:
            raise ValueError(f"{path}: task is {file.task!r}; it must be {task.name!r}")
        found = _checked(path, task, file.protocols)
        default = file.default or next(iter(found), "")
        default_synthetic = file.default_synthetic or default
    for name in (default, default_synthetic):
        if name not in found:
            raise ValueError(f"{path}: there is no protocol {name!r}{closest(name, found)}, the default")
    return _Declared(found, found[default], found[default_synthetic])


def _of_user(path: Path, known: Mapping[str, Protocol], directories: Sequence[Path]) -> Protocol:
    file = read_protocols(path)
    names = task_names(directories)
    if file.task not in names:
        raise ValueError(f"{path}: task is {file.task!r}; use one of {', '.join(names)}")
    if len(file.protocols) != 1:
        raise ValueError(
            f"{path} holds {len(file.protocols)} protocols ({', '.join(map(str, file.protocols))}); keep one "
            "in a file"
        )
    [(name, protocol)] = _checked(path, get_task(file.task, directories), file.protocols).items()
    if name in known:
        raise ValueError(f"{path}: {name} is a shipped protocol; choose another name for yours")
    return protocol


def _checked(path: Path, task: type[Task], values: Mapping[str, object]) -> dict[str, Protocol]:
    """Protocols in the form of a file; errors name it."""
    try:
        return {name: Protocol.of(name, task.name, value, task.settings) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
