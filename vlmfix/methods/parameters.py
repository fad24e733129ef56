"""What parameters of methods may be, and what is said of those that may not."""

from __future__ import annotations

from typing import Any


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and what is no number.

    Raises:
        ValueError: naming the parameter, the value and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number in [low, high]; None: without an upper end.

    Raises:
        ValueError: naming the parameter, the value and the range.
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        allowed = f"from {low} on" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number {allowed}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ValueError: naming the parameter and the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ValueError: naming the parameter, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def layer_indices(name: str, values: Any) -> tuple[int, ...]:
    """Layers as a sorted tuple; a single one may stand alone.

    Raises:
        ValueError: they are no layer indices.
    """
    several = [values] if isinstance(values, int) else list(values)
    if any(type(value) is not int or value < 0 for value in several):
        raise ValueError(f"{name} is {values!r}; it must hold layer indices, 0 or more")
    return tuple(sorted(set(several)))
