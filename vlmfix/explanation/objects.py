"""Objects that are in a picture, and those that an answer names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from vlmfix.evaluation.files.readers import shown


class Mention(NamedTuple):
    """An object that an answer names.

    Args:
        category: its class.
        start: place of its first character in the answer, and `stop` that after its last.
        is_present: whether it is in the picture.
    """

    category: str
    start: int
    stop: int
    is_present: bool


@dataclass(frozen=True, eq=False)
class PictureObjects:
    """What is known to be in a picture.

    Args:
        mentions: finds the objects that an answer names.
        masks: of the objects by category, union of its instances, `(height, width)` bool each.
        ignored: pixels that are neither in nor out, such as crowds, by category.
    """

    mentions: Callable[[str], Sequence[Mention]]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    ignored: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_masks(
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
    size: tuple[int, int],
    where: Path,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Masks of a picture from its COCO annotations: polygons, or run lengths; without either, boxes.

    Args:
        annotations: of the picture.
        categories: their names by id.
        size: width and height of the picture in pixels.
        where: the file, for messages.

    Returns:
        Objects and crowds, by category.

    Raises:
        ValueError: a segmentation or box of the file cannot be read.
    """
    masks: dict[str, np.ndarray] = {}
    crowds: dict[str, np.ndarray] = {}
    for each in annotations:
        name = categories[each["category_id"]]
        own = crowds if each.get("iscrowd") else masks
        mask = _mask(each, size, where)
        own[name] = own[name] | mask if name in own else mask
    return masks, crowds


def _mask(annotation: Mapping[str, Any], size: tuple[int, int], where: Path) -> np.ndarray:
    width, height = size
    outline = annotation.get("segmentation")
    try:
        if isinstance(outline, list) and outline:
            parts = [_inside(each, size) for each in outline]
            found = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))
        elif isinstance(outline, dict):
            if list(outline["size"]) != [height, width]:
                raise ValueError(f"its size is {outline['size']}, the picture has {[height, width]}")
            counts = outline["counts"]
            found = coco_mask.decode(outline) if isinstance(counts, str) else _run_lengths(counts, size)
        else:
            left, top, across, down = annotation["bbox"]
            found = np.zeros((height, width), dtype=np.uint8)
            rows = slice(max(0, round(top)), max(0, round(top + down)))
            found[rows, max(0, round(left)) : max(0, round(left + across))] = 1
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{where}: the segmentation of annotation {shown(annotation.get('id'))} cannot be read "
            f"({type(error).__name__}: {error}); it must be polygons, run lengths of the picture, or a box"
        ) from error
    mask: np.ndarray = found.astype(bool)
    return mask


def _inside(polygon: Any, size: tuple[int, int]) -> list[float]:
    """Corners of a polygon, x and y in turn, within the picture."""
    corners = np.asarray(polygon, dtype=float).reshape(-1, 2)
    found: list[float] = corners.clip(0, size).ravel().tolist()
    return found


def _run_lengths(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """Runs of pixels that are out and in, in turn, down the columns."""
    runs = np.asarray(counts)
    if runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(f"its run lengths are not those of {size[0]} x {size[1]} pixels")
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(size[0], size[1]).T
