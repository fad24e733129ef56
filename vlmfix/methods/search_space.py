"""Ranges in which `vlmfix tune` searches the parameters of a method, as methods declare them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`; with `log`, ratios count and not differences."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class LayersBetween:
    """A whole number of layers, or the number of a layer, as shares of the depth of the text decoder."""

    low: float
    high: float

    def at(self, depth: int) -> tuple[int, int]:
        """The least and the greatest number in a decoder of so many layers."""
        low = round(self.low * depth)
        return low, max(low, min(round(self.high * depth), depth))


@dataclass(frozen=True)
class OneOf:
    """One of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class FirstOf:
    """As many of the first of a ranking, the best ones first; one at least."""

    ranking: tuple[Any, ...]


Dimension = Between | LayersBetween | OneOf | FirstOf
