"""The part of an axis that a plot shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Interval = tuple[float, float, float]
"""Low end, value and high end."""
_FAR = 3.0
"""A point is far from the others beyond so many times the span of the nearer half of them."""
_EDGE = 0.06
"""Share of an axis between its ends and the points."""


@dataclass(frozen=True)
class Scale:
    """The part of an axis that has points on it."""

    low: float
    high: float

    @property
    def limits(self) -> tuple[float, float]:
        """Both ends with room around the points."""
        room = _EDGE * (self.high - self.low) or _EDGE * abs(self.high) or 1.0
        return self.low - room, self.high + room

    def place(self, value: float) -> tuple[float, int]:
        """Where a value is drawn, and on which side it is beyond the edge: -1, 0 or 1."""
        if value < self.low:
            return self.low, -1
        return (self.high, 1) if value > self.high else (value, 0)


def scale(intervals: Sequence[Interval]) -> Scale:
    """The part of an axis that shows the points, without those so far away that they squeeze the others.

    Args:
        intervals: of the points; of those without a bar, three equal values.
    """
    ordered = sorted(intervals, key=lambda each: each[1])
    most = len(ordered) // 2 + 1
    runs = [ordered[start : start + most] for start in range(len(ordered) - most + 1)]
    near = min(runs, key=lambda run: run[-1][1] - run[0][1])
    reach = _FAR * max(near[-1][1] - near[0][1], median(high - low for low, _, high in ordered))
    first, last = near[0][1] - reach, near[-1][1] + reach
    kept = [each for each in ordered if first <= each[1] <= last] if reach else ordered
    return Scale(min(low for low, _, _ in kept), max(high for _, _, high in kept))
