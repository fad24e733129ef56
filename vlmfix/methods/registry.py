"""Registry of methods: the class of each name.

Methods of this package are found by the text of its files, those of other packages by their entry points in
the group `vlmfix.methods`: names are known without an import of torch, and a module is imported when its
method is wanted. The class decorator `register_method` gives a method its name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlmfix.errors import PACKAGES
from vlmfix.plugins import plugins
from vlmfix.settings import closest

if TYPE_CHECKING:
    from vlmfix.methods.base import Method

GROUP = "vlmfix.methods"
GREEDY = "greedy"
"""The word for decoding without any method."""
AUTO = "auto"
"""The word for the recipe of a checkpoint, see `vlmfix.recipes.find_recipe`."""

_PACKAGE = __name__.rpartition(".")[0]
_LINE = re.compile(r'^@register_method\("([^"]+)"\)', re.MULTILINE)
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_RENAMED = {
    "randomtokens": "random_tokens",
    "uniformgrid": "uniform_grid",
    "pyramiddrop": "pyramid_drop",
}
_RENAMED_PREFIX = "control.", "baseline."

_registered: dict[str, type[Method]] = {}

_M = TypeVar("_M", bound="Method")


def register_method(name: str) -> Callable[[type[_M]], type[_M]]:
    """A class decorator, above `@dataclass`, by which the command line and results know a method by name.

    Args:
        name: small letters, digits, `_`, `-` and `.`, such as "var"; a literal in files of this package.

    Raises:
        ValueError: the name has another form, or is that of another method; or a declaration of the class
            does not fit the others, see `vlmfix.methods.class_checks`.
        TypeError: the class is not a method, lacks its `info`, has abstract members, or overrides no hook.
    """

    def register(cls: type[_M]) -> type[_M]:
        if not _NAME.fullmatch(name) or name in (GREEDY, AUTO):
            raise ValueError(
                f"{_place(cls)} cannot be called {name!r}; use small letters, digits, '_', '-' and '.'"
                f"{', and not a word for something else' if name in (GREEDY, AUTO) else ''}"
            )
        from vlmfix.methods.class_checks import check_class  # which needs torch

        check_class(cls, _place(cls))
        places = {*_own().get(name, ()), *(_place(each) for each in (_registered.get(name),) if each)}
        for place in sorted(places - {_place(cls), cls.__module__}):  # a cell of a notebook may run again
            raise ValueError(f"two methods are called {name!r}: {place} and {_place(cls)}; rename one")
        cls.name = name
        _registered[name] = cls
        PACKAGES.add(cls.__module__.partition(".")[0])
        return cls

    return register


def _place(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@cache
def _own() -> dict[str, list[str]]:
    """Modules of this package by the names of the methods in them."""
    found: dict[str, list[str]] = {}
    folder = Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        for name in _LINE.findall(file.read_text(encoding="utf-8")):
            parts = file.relative_to(folder).with_suffix("").parts
            found.setdefault(name, []).append(".".join((_PACKAGE, *parts)))
    return found


@dataclass(frozen=True)
class _Source:
    """Where a method comes from.

    Args:
        words: how messages call it.
        load: gives the class; raises ValueError where a plugin is broken.
    """

    words: str
    load: Callable[[], object]


def _sources() -> dict[str, list[_Source]]:
    """Where the methods of this package and of plugins come from, by name."""
    found = {name: [_own_source(name, module) for module in modules] for name, modules in _own().items()}
    for entry in plugins(GROUP):
        found.setdefault(entry.name, []).append(_plugin_source(entry))
    return found


def _own_source(name: str, module: str) -> _Source:
    def load() -> object:
        import_module(module)
        return _registered[name]

    return _Source(f"{module} of vlmfix", load)


def _plugin_source(entry: metadata.EntryPoint) -> _Source:
    package = "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    words = f"{entry.value} of {package}"

    def load() -> object:
        try:
            return entry.load()
        except (Exception, SystemExit) as error:  # the modules of others raise what they like
            raise ValueError(
                f"method {entry.name!r} cannot be loaded from {words} ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); repair or uninstall that package"
            ) from error

    return _Source(words, load)


def _names(sources: Mapping[str, object]) -> list[str]:
    return sorted({*sources, *_registered}, key=lambda name: ("." in name, name))


def method_names() -> list[str]:
    """Names of all methods, in alphabetical order, those with a dot (the baselines) last; imports none."""
    return _names(_sources())


def list_methods() -> dict[str, type[Method]]:
    """Every method by the name that the command line uses, in alphabetical order, baselines last.

    A method of another package that cannot be loaded is left out, with a warning.
    """
    found = {}
    sources = _sources()
    for name in _names(sources):
        try:
            found[name] = _load(name, sources)
        except ValueError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return dict(sorted(found.items(), key=lambda item: (item[1].info.is_baseline, item[0])))


def get_method(name: str) -> type[Method]:
    """The class of the method called `name`.

    Raises:
        ValueError: there is none, there are two, or its package cannot be loaded.
    """
    return _load(current_name(name), _sources())


def make_method(name: str, /, **parameters: Any) -> Method:
    """The method called `name` with the given parameters, the others at their defaults.

    Raises:
        ValueError: unknown method or parameter, or a value out of its range.
    """
    cls = get_method(name)
    allowed = cls.parameter_names()
    for parameter in parameters:
        if parameter not in allowed:
            raise ValueError(
                f"{cls.name} has no parameter {parameter!r}{closest(parameter, allowed)}; it has "
                f"{', '.join(allowed) or 'none'}"
            )
    return cls(**parameters)


def _load(name: str, sources: Mapping[str, Sequence[_Source]]) -> type[Method]:
    known = sources.get(name, ())
    if len(known) > 1:
        places = " and ".join(source.words for source in known)
        raise ValueError(f"two methods are called {name!r}: {places}; uninstall one, or rename it")
    for source in known:
        if source.load() is not _registered.get(name):
            raise ValueError(
                f"method {name!r}: {source.words} is not registered under this name; put "
                f"@register_method({name!r}) above that class, or correct its entry point"
            )
    if name not in _registered:
        names = _names(sources)
        meant = closest(name, [*names, GREEDY])
        raise ValueError(f"unknown method {name!r}{meant}; known methods: {', '.join(names)}")
    from vlmfix.methods.class_checks import check_values  # which needs torch

    check_values(_registered[name], _place(_registered[name]))
    return _registered[name]


def current_name(name: str) -> str:
    """A name as it is spelled today; an old spelling is told with a warning."""
    old, new = _RENAMED_PREFIX
    current = f"{new}{name.removeprefix(old)}" if name.startswith(old) else _RENAMED.get(name, name)
    if current == name or current not in (names := method_names()) or name in names:
        return name
    warnings.warn(f"method {name!r} is called {current!r} now", FutureWarning, stacklevel=1)
    return current
