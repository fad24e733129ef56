"""Grammar of methods, on the command line, in job files and in Python: `a+b` and `METHOD.KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmfix.methods.registry import AUTO, GREEDY, current_name, make_method, method_names
from vlmfix.settings import parse_yaml

if TYPE_CHECKING:
    from vlmfix.methods.base import Method


def parse_methods(
    text: str, parameters: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The methods that a text such as "var+vcd" names, each with its parameters; none for "greedy".

    Args:
        text: one name, or several joined by `+`, in the order in which they are attached.
        parameters: by method; None: all at their defaults.

    Raises:
        ValueError: a name is missing or comes twice, or parameters are of no method or of a wrong form.
    """
    names = _split(text)
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for written, values in (parameters or {}).items():
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ValueError(f"the parameters of {written} are {values!r}; they must be a mapping of names")
        if not names and values:
            raise ValueError(f"{GREEDY} has no parameters; name a method")
        if names and (name := current_name(written)) not in found:
            raise ValueError(f"there are settings for {written}, which is not in {text}")
        if names:
            found[name].update(values)
    return found


def _split(text: str) -> list[str]:
    written = text.split("+")
    if "" in written:
        rest = "+".join(filter(None, written))
        missing = f"lacks a name beside '+'; write {rest!r}" if rest else f"names none; write {GREEDY!r}"
        raise ValueError(f"method {text!r} {missing} or name a method there: {', '.join(method_names())}")
    if AUTO in written:
        raise ValueError(
            f"{text}: {AUTO} is the recipe of a checkpoint and no method; give it alone and without "
            "parameters, or name methods"
        )
    if written == [GREEDY]:
        return []
    if GREEDY in written:
        rest = "+".join(each for each in written if each != GREEDY)
        raise ValueError(f"{text}: {GREEDY} is decoding without a method; write {rest or GREEDY}")
    names = [current_name(each) for each in written]
    if len(set(names)) < len(names):
        raise ValueError(f"{text} names a method twice; once is enough")
    return names


def parse_settings(texts: Sequence[str], settings: Iterable[str]) -> list[dict[str, dict[str, Any]]]:
    """Several texts of methods with their parameters, see `parse_methods`.

    Args:
        texts: such as "var" and "var+vcd".
        settings: `METHOD.KEY=VALUE`, of this method wherever it is named, or `KEY=VALUE` where there is one
            method; values are YAML.

    Raises:
        ValueError: as `parse_methods`; or a setting is unreadable, of no method, of several, or comes twice.
    """
    chosen = [parse_methods(text) for text in texts]
    names = list(dict.fromkeys(name for each in chosen for name in each))
    for setting in settings:
        key, value = _parse_setting(setting)
        owner, dot, parameter = key.rpartition(".")
        if not names:
            raise ValueError(f"{GREEDY} has no parameters, but --set gives {key}; name a --method")
        if not dot and (len(names) > 1 or len(texts) > 1):
            raise ValueError(f"--set {key} may belong to any of {', '.join(texts)}; write {names[0]}.{key}")
        owner = current_name(owner) if dot else names[0]
        if owner not in names:
            raise ValueError(f"--set {key} is of no method in --method {', '.join(texts)}")
        for parameters in (each[owner] for each in chosen if owner in each):
            if parameter in parameters:
                raise ValueError(
                    f"--set gives {parameter} twice, {parameters[parameter]!r} and {value!r}; keep one"
                )
            parameters[parameter] = value
    return chosen


def _parse_setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"--set {text!r} is not KEY=VALUE, such as --set moved_fraction=0.6")
    try:
        return key.strip(), parse_yaml(value)
    except ValueError as error:
        raise ValueError(
            f"--set {text!r}: the value is not readable ({error}); write numbers, true/false or [1, 2]"
        ) from error


def make_methods(chosen: Mapping[str, Mapping[str, Any]]) -> list[Method]:
    """The methods that `parse_methods` found.

    Raises:
        ValueError: unknown method or parameter, or a value out of its range.
        UnsupportedError: methods that do not go together on any model.
    """
    from vlmfix.engine.combination import check_combination  # with torch, which takes seconds

    methods = [make_method(name, **parameters) for name, parameters in chosen.items()]
    check_combination(methods)
    return methods
