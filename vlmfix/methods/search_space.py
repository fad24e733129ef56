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

    def __post_init__(self) -> None:
        numbers = all(type(each) in (int, float) for each in (self.low, self.high))
        if not numbers or not self.low < self.high or (self.log and self.low <= 0):
            least = "above 0 and " if self.log else ""
            raise ValueError(f"{self} is no range; low must be a number {least}below high")


@dataclass(frozen=True)
class LayersBetween:
    """A whole number of layers, or the number of a layer, as shares of the depth of the text decoder."""

    low: float
    high: float

    def __post_init__(self) -> None:
        numbers = all(type(each) in (int, float) for each in (self.low, self.high))
        if not numbers or not 0 <= self.low <= self.high:
            raise ValueError(f"{self} is no range; low and high must be numbers, 0 or more")

    def at(self, depth: int) -> tuple[int, int]:
        """The least and the greatest number in a decoder of so many layers."""
        low = round(self.low * depth)
        return low, max(low, min(round(self.high * depth), depth))


@dataclass(frozen=True)
class OneOf:
    """One of several values."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.values, tuple) or not self.values:
            raise ValueError(f"{self} offers nothing; values must be a tuple with one value at least")


@dataclass(frozen=True)
class FirstOf:
    """As many of the first of a ranking, the best ones first; one at least."""

    ranking: tuple[Any, ...]


Dimension = Between | LayersBetween | OneOf | FirstOf
