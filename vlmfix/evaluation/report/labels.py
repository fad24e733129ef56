"""Labels of points in a plot, each placed where it hides least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge."""

_MARKER = 4.5  # half the side of a marker
_GAP = 2.0  # between a marker and its label


@dataclass(frozen=True)
class Placed:
    """Where a label stands.

    Args:
        box: that it fills.
        is_far: whether it is so far from its point that a line has to join them.
    """

    box: Box
    is_far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[Box],
) -> list[Placed]:
    """A place for the label of each point, the first ones first.

    Args:
        points: that are labelled, in any unit of length.
        sizes: width and height of each label.
        frame: that labels stay inside.
        obstacles: what else is drawn.
    """
    drawn = [*obstacles, *((x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points)]
    found: list[Placed] = []
    for point, size in zip(points, sizes, strict=True):
        candidates = _candidates(point, size)
        others = [each.box for each in found]
        costs = [_cost(box, away, frame, drawn, others) for box, away in candidates]
        box, away = candidates[costs.index(min(costs))]
        found.append(Placed(box, away > 2 * size[1]))
    return found


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(up, 0.0)


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> list[tuple[Box, float]]:
    """Boxes around a point, each with its distance from it."""
    (x, y), (width, height) = point, size
    beside, middle = _MARKER + _GAP, width / 2
    found = []
    for step in range(14):
        away = step * (height + _GAP) / 2
        for sign in (1, -1):
            for left in (x + beside, x - beside - width, x - middle):
                if step == 0 and left == x - middle:
                    continue  # on the point itself
                lower = y - height / 2 + sign * away
                found.append(((left, lower, left + width, lower + height), away))
    return found


def _cost(box: Box, away: float, frame: Box, drawn: Sequence[Box], labels: Sequence[Box]) -> float:
    """Area on what is drawn, a lot on other labels and outside the frame, and a little for the distance."""
    outside = overlap(box, box) - overlap(box, frame)
    hidden = sum(overlap(box, each) for each in drawn) + 50 * sum(overlap(box, each) for each in labels)
    return hidden + 50 * outside + 0.5 * away
