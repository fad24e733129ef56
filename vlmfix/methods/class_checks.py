"""What is wrong with the class of a method, found when it is registered and not in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from vlmfix.engine import capabilities
from vlmfix.engine.method import MethodHooks
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.search_space import Between, Dimension, LayersBetween, OneOf
from vlmfix.settings import closest

_HOOKS = ("edit_scores", "edit_weights", "edit_heads", "edit_logits", "enter_layer", "observe", "branches")
_OF_ROWS = ("edit_scores", "edit_weights", "observe")
_sound: set[type[Method]] = set()
_CAPABILITIES = tuple(
    each
    for each in vars(capabilities).values()
    if isinstance(each, type) and each.__module__ == capabilities.__name__
)


def check_class(cls: type[Any], place: str) -> None:
    """Refuse a class that would fail later, or for others.

    Args:
        cls: with `@dataclass` applied.
        place: module and name of it, for messages.

    Raises:
        TypeError: it is no method, lacks something, or overrides no hook.
        ValueError: one of its declarations does not fit the others.
    """
    if not issubclass(cls, Method):
        raise TypeError(f"{place} is no method; derive it from vlmfix.Method")
    abstract: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if abstract:
        raise TypeError(f"{place} lacks {', '.join(sorted(abstract))}; define them")
    if not isinstance(getattr(cls, "info", None), MethodInfo):
        raise TypeError(f"{place} lacks a description; set info = vlmfix.MethodInfo(...)")
    if fault := next(_faults(cls), None):
        raise ValueError(f"{place}{fault}")
    if cls.attaches and (fault := _fault_of_hooks(cls)):
        raise TypeError(f"{place} {fault}")


def _faults(cls: type[Method]) -> Iterator[str]:
    """What is wrong with the declarations, each as it goes on after the name of the class."""
    known = {each.name for each in fields(cls)}
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        if name in ("gate", "act_on"):
            yield f" defines {name}, which is a field of every method; leave it out"
        if name not in known and "ClassVar" not in str(annotation):
            yield (
                f": {name} is no field of it; put @dataclass(frozen=True, kw_only=True) between "
                "@register_method and the class"
            )
    for each in fields(cls):
        if each.init and each.default is MISSING and each.default_factory is MISSING:
            yield f" has no default for {each.name}; give it one"
    for title, own in (("identity_parameters", cls.identity_parameters), ("search_space", cls.search_space)):
        if own is not None and not isinstance(own, Mapping):
            yield f".{title} is {own!r}; it must be a mapping from parameters"
        for name in own or ():
            if name not in (allowed := cls.parameter_names()):
                yield f".{title} has {name!r}{closest(name, allowed)}, which is no parameter of it"
    for name, dimension in (cls.search_space or {}).items():
        if not isinstance(dimension, get_args(Dimension)):
            yield f".search_space has {dimension!r} for {name}; use Between, LayersBetween or OneOf"
        if isinstance(dimension, LayersBetween) and dimension.high > 1:
            yield f".search_space has {dimension} for {name}; low and high are shares of the depth, up to 1"


def check_values(cls: type[Method], place: str) -> None:
    """Refuse a class that does not take its own values; its module is loaded to the end by then.

    Args:
        cls: that `check_class` lets pass.
        place: module and name of it, for messages.

    Raises:
        ValueError: it refuses its defaults, the values that switch it off, or an end of its search space.
    """
    if cls in _sound:
        return
    if fault := next(_refusals(cls), None):
        raise ValueError(f"{place}{fault}")
    _sound.add(cls)


def _refusals(cls: type[Method]) -> Iterator[str]:
    yield from _refused(cls, {}, "the defaults")
    yield from _refused(cls, cls.identity_parameters, "identity_parameters")
    for name, dimension in (cls.search_space or {}).items():
        ends: tuple[Any, ...] = ()
        if isinstance(dimension, Between):
            ends = (dimension.low, dimension.high)
        elif isinstance(dimension, OneOf):
            ends = dimension.values
        for end in ends:
            yield from _refused(cls, {name: end}, f"search_space of {name}")


def _refused(cls: type[Method], parameters: Mapping[str, Any], what: str) -> Iterator[str]:
    """That the class itself does not take some of its own values."""
    try:
        cls(**parameters)
    except (ValueError, TypeError) as error:
        yield f" refuses its own values ({what}): {error}"


def _fault_of_hooks(cls: type[Method]) -> str | None:
    """What is missing among the hooks of a method that attaches."""
    overridden = [name for name in _HOOKS if getattr(cls, name) is not getattr(MethodHooks, name)]
    if not overridden and not issubclass(cls, _CAPABILITIES):
        typos = (closest(name, _HOOKS) for name in vars(cls) if not name.startswith("_"))
        return (
            f"overrides no hook{next(filter(None, typos), '')}; see vlmfix.Method, or derive it from a base"
        )
    of_rows = [name for name in overridden if name in _OF_ROWS]
    if of_rows and cls.rows is MethodHooks.rows:
        return f"overrides {of_rows[0]} and not rows, so that it gets none; say which rows it wants"
    return None
