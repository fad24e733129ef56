"""What parameters of methods may be, and what is said of those that may not."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

LEAST_TEMPERATURE = 1e-4


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Refuse a number outside [low, high], what is not finite, and what is no number.

    Raises:
        ValueError: naming the parameter, the value and the range.
    """
    highest = min(high, sys.float_info.max)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= highest:
        allowed = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on"
        raise ValueError(f"{name} is {shown(value)}; it must be a number {allowed}")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number in [low, high]; None: without an upper end.

    Raises:
        ValueError: naming the parameter, the value and the range.
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        allowed = f"from {low} on" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number {allowed}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false.

    Raises:
        ValueError: naming the parameter and the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be true or false")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ValueError: naming the parameter, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, choices))}")


def layer_indices(name: str, values: Any) -> tuple[int, ...]:
    """Layers as a sorted tuple; a single one may stand alone.

    Raises:
        ValueError: they are no layer indices.
    """
    several = sequence(name, [values] if isinstance(values, int) else values, "layer indices, 0 or more")
    if any(type(value) is not int or value < 0 for value in several):
        raise ValueError(f"{name} is {shown(values)}; it must hold layer indices, 0 or more")
    return tuple(sorted(set(several)))


def check_temperature(name: str, value: float) -> None:
    """Refuse what is neither 0 nor a temperature by which logits can be divided.

    Raises:
        ValueError: naming the value and what it may be.
    """
    if value != 0 and not LEAST_TEMPERATURE <= value <= sys.float_info.max:
        raise ValueError(
            f"{name} is {shown(value)}; it must be 0, or a number of {LEAST_TEMPERATURE} or more"
        )


def check_token_ids(name: str, ids: Iterable[int] | None, vocabulary: int) -> None:
    """Refuse token ids that a model does not have; None: none are given.

    Raises:
        ValueError: naming the parameter, the id and the range.
    """
    highest = max(ids or (), default=0)
    if highest >= vocabulary:
        raise ValueError(f"{name} has {highest}; the tokens of this model go from 0 to {vocabulary - 1}")


def sequence(name: str, values: Any, wanted: str) -> tuple[Any, ...]:
    """Several values as a tuple.

    Raises:
        ValueError: it is one value, a text or a mapping; the message says what is `wanted`.
    """
    if not isinstance(values, str | bytes | dict):
        with suppress(TypeError):
            return tuple(values)
    raise ValueError(f"{name} is {shown(values)}; it must hold {wanted}")


def shown(value: Any) -> str:
    """A value in a message, cut where it is long; also one whose digits Python refuses to write."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."
