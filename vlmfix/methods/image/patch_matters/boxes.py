"""Boxes of a picture: how they overlap, merge, and divide it into quadrants."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

LEAST_DETECTION_SCORE = 0.3
NEIGHBOURS = ((0, 1), (0, 2), (1, 3), (2, 3))
"""Quadrants that lie beside or above each other, in raster order."""


class Detection(NamedTuple):
    """An object that a detector found.

    Args:
        box: left, top, right and bottom in pixels.
        label: what it is, in words.
        score: how sure the detector is, in [0, 1].
    """

    box: Box
    label: str
    score: float


def whole(size: tuple[int, int]) -> Box:
    """The box of a whole picture."""
    return 0.0, 0.0, float(size[0]), float(size[1])


def area(box: Box) -> float:
    """Of a box without width or height, 0."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(first: Box, second: Box) -> float:
    """Area that two boxes share."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    return area((left, top, min(first[2], second[2]), min(first[3], second[3])))


def iou(first: Box, second: Box) -> float:
    """Intersection over union, 0 where both are empty."""
    shared = intersection(first, second)
    both = area(first) + area(second) - shared
    return shared / both if both else 0.0


def share(box: Box, within: Box) -> float:
    """Part of a box that lies inside another one, 0 of an empty one."""
    return intersection(box, within) / area(box) if area(box) else 0.0


def union(*boxes: Box) -> Box:
    """The smallest box around all."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def kept_detections(found: Sequence[Detection]) -> list[Detection]:
    """Those with a score above 0.3; without any, the first two."""
    return [each for each in found if each.score > LEAST_DETECTION_SCORE] or list(found[:2])


def merged(boxes: Sequence[Box], most: float) -> list[Box]:
    """Boxes of which no two have an IoU above `most`: such pairs become their union, again and again."""
    left = list(boxes)
    while True:
        pair = next((pair for pair in combinations(range(len(left)), 2) if _meets(left, pair, most)), None)
        if pair is None:
            return left
        second = left.pop(pair[1])
        left[pair[0]] = union(left[pair[0]], second)


def _meets(boxes: Sequence[Box], pair: tuple[int, int], most: float) -> bool:
    return iou(boxes[pair[0]], boxes[pair[1]]) > most


def quadrants(size: tuple[int, int], overlap: float = 0.0) -> list[Box]:
    """The quarters of a picture in raster order.

    Args:
        size: width and height in pixels.
        overlap: by which share of its sides each reaches beyond the middle.
    """
    width, height = size
    right, bottom = width / 2 * (1 + overlap), height / 2 * (1 + overlap)
    return [
        (left, top, left + right, top + bottom)
        for top in (0.0, height - bottom)
        for left in (0.0, width - right)
    ]


def grown(quadrant: Box, boxes: Sequence[Box], least_share: float) -> Box:
    """A quadrant and all boxes of which more than `least_share` lies inside it."""
    return union(quadrant, *(box for box in boxes if share(box, quadrant) > least_share))


def in_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box rounded to pixels of a picture, within it, and of at least one pixel."""
    width, height = size
    left, top = min(max(0, round(box[0])), width - 1), min(max(0, round(box[1])), height - 1)
    return left, top, max(left + 1, min(width, round(box[2]))), max(top + 1, min(height, round(box[3])))


def scaled(box: Box, size: tuple[int, int]) -> str:
    """A box in shares of the picture, as text for a language model."""
    width, height = size
    numbers = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    return "[" + ", ".join(f"{number:.2f}" for number in numbers) + "]"
