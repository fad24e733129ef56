"""Ratios that may lack a denominator."""

from __future__ import annotations

from collections.abc import Mapping


def ratio(part: float, whole: float) -> float:
    """`part / whole`, and 0.0 where `whole` is zero."""
    return part / whole if whole else 0.0


def harmonic_mean(first: float, second: float) -> float:
    """F1 of a precision and a recall; 0.0 where both are zero."""
    return ratio(2 * first * second, first + second)


def undefined(wholes: Mapping[str, float]) -> tuple[str, ...]:
    """The names of the figures whose denominator is zero."""
    return tuple(name for name, whole in wholes.items() if not whole)
