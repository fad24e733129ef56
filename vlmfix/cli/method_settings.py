"""Methods and their parameters as options name them: `--method a+b`, `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import vlmfix
from vlmfix.settings import parse_yaml

if TYPE_CHECKING:
    from vlmfix.methods.base import Method


def parse_methods(names: str, settings: Iterable[str]) -> list[Method]:
    """The methods that `a+b` names, with their parameters; none for greedy.

    Args:
        names: of one method, of several joined by `+`, or "greedy".
        settings: `KEY=VALUE`, of one among several methods `METHOD.KEY=VALUE`; values are YAML.

    Raises:
        ValueError: an unknown method or parameter, or a setting that is unreadable, of no method or given
            twice.
    """
    chosen = [] if names == "greedy" else names.split("+")
    parameters: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    if len(parameters) < len(chosen):
        raise ValueError(f"--method {names} names a method twice; once is enough")
    for key, value in map(parse_setting, settings):
        owner, dot, parameter = key.rpartition(".")
        if not chosen:
            raise ValueError(f"greedy has no parameters, but --set gives {key}; name a --method")
        if not dot and len(chosen) > 1:
            raise ValueError(f"--set {key} may belong to any of {names}; write {chosen[0]}.{key}")
        if dot and owner not in parameters:
            raise ValueError(f"--set {key} is of a method that is not in --method {names}")
        add_setting(parameters[owner or chosen[0]], parameter, value)
    return [vlmfix.make_method(name, **parameters[name]) for name in chosen]


def parse_setting(text: str) -> tuple[str, Any]:
    """Key and value of `KEY=VALUE`; the value is YAML.

    Raises:
        ValueError: it has another form.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set moved_fraction=0.6")
    try:
        return key.strip(), parse_yaml(value)
    except ValueError as error:
        raise ValueError(
            f"--set {text!r}: the value is not readable ({error}); write numbers, true/false or [1, 2]"
        ) from error


def add_setting(parameters: dict[str, Any], key: str, value: Any) -> None:
    """Take a setting of a method over.

    Raises:
        ValueError: there is one of the same parameter.
    """
    if key in parameters:
        raise ValueError(f"--set gives {key} twice, {parameters[key]!r} and {value!r}; keep one")
    parameters[key] = value


def method_entries(names: list[str] | None, settings: list[str]) -> list[Any] | None:
    """Methods with their parameters in the form of a job file."""
    if names is None:
        if settings:
            raise ValueError(f"--set {settings[0]} belongs to no --method; name one")
        return None
    parsed = [parse_setting(each) for each in settings]
    used: set[str] = set()
    entries: list[Any] = []
    for name in names:
        parameters: dict[str, dict[str, Any]] = {}
        for key, value in parsed:
            owner, dot, parameter = key.rpartition(".")
            parts = name.split("+")
            if not dot and len(names) == len(parts) == 1:
                owner = name
            if owner in parts and name != "greedy":
                add_setting(parameters.setdefault(owner, {}), parameter, value)
                used.add(key)
        only = parameters.get(name)
        entries.append({name: parameters if "+" in name else only} if parameters else name)
    for key, _ in parsed:
        if key not in used:
            raise ValueError(f"--set {key} is of no method in --method; write METHOD.KEY=VALUE")
    return entries
