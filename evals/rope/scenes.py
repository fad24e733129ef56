"""Synthetic scenes with five objects in numbered red boxes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlmfix.evaluation.datasets.annotations import BoxedObject, read_boxes
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.marked_pictures import marked_picture

from .entries import Entry
from .slots import SLOTS

SOURCE = "scenes"
RED, WHITE = (255, 0, 0), (255, 255, 255)


def read_scenes(folder: DataFolder, built: Path) -> dict[str, list[tuple[Entry, Path]]]:
    """Scenes with five objects at least, of which the first five are marked, by split, with their pictures.

    Args:
        folder: of synthetic scenes.
        built: folder that receives the marked pictures.

    Raises:
        FileNotFoundError: the folder has no instances or no pictures.
        ValueError: the file of instances is broken, or no scene has so many objects.
    """
    instances = folder.require("instances", "rope")
    images = [image for image in read_boxes(instances) if len(image.objects) >= SLOTS]
    if not images:
        raise ValueError(f"{instances}: no scene has {SLOTS} objects, which rope needs; give more scenes")
    folder.record("instances", instances, len(images))
    found: dict[str, list[tuple[Entry, Path]]] = {}
    for image in images:
        objects = image.objects[:SLOTS]
        classes = tuple(item.category for item in objects)
        split = "heterogenous" if len(set(classes)) == SLOTS else "mixed"
        picture = folder.image(image.file_name, "rope")
        marks = {"boxes": [item.box for item in objects], "color": RED, "numbers": True}
        path = marked_picture(picture, marks, partial(with_numbers, objects=objects), built)
        found.setdefault(split, []).append((Entry(image.file_name, SOURCE, classes), path))
    return found


def with_numbers(picture: Image.Image, objects: Sequence[BoxedObject]) -> Image.Image:
    """A picture with a red box around each object, whose number stands in its upper left corner."""
    marked = picture.copy()
    draw = ImageDraw.Draw(marked)
    font = ImageFont.load_default()
    for item in objects:
        draw.rectangle(item.box, outline=RED)
    for number, item in enumerate(objects, 1):  # over all boxes
        corner = item.box[:2]
        draw.rectangle(draw.textbbox(corner, str(number), font=font), fill=RED)
        draw.text(corner, str(number), fill=WHITE, font=font)
    return marked
