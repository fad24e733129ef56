"""Registry of methods."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import fields
from typing import Any

import vlmfix.methods
from vlmfix.methods.base import Method


def list_methods() -> dict[str, type[Method]]:
    """Every method of the package by the name that the command line uses, in alphabetical order, controls
    last."""
    package = vlmfix.methods
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found = [cls for cls in _subclasses(Method) if cls.__module__.startswith(f"{package.__name__}.")]
    found = [cls for cls in found if "info" in vars(cls) and not cls.__name__.startswith("_")]
    return {cls.name: cls for cls in sorted(found, key=lambda cls: (cls.info.is_baseline, cls.name))}


def _subclasses(cls: type[Method]) -> list[type[Method]]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]


def make_method(name: str, /, **parameters: Any) -> Method:
    """The method called `name` with the given parameters, the others at their defaults.

    Raises:
        ValueError: unknown method or parameter, or a value out of its range.
    """
    known = list_methods()
    if name not in known:
        raise ValueError(f"unknown method {name!r}{_closest(name, known)}; known methods: {', '.join(known)}")
    allowed = [field.name for field in fields(known[name]) if field.init]
    for parameter in parameters:
        if parameter not in allowed:
            raise ValueError(
                f"{name} has no parameter {parameter!r}{_closest(parameter, allowed)}; it has "
                f"{', '.join(allowed)}"
            )
    return known[name](**parameters)


def _closest(word: str, choices: Any) -> str:
    match = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
