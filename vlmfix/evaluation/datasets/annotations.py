"""Instances and captions of COCO files, read through pycocotools and checked."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from vlmfix.evaluation.files.readers import examples, read_json, shown


@dataclass(frozen=True)
class Instances:
    """What an instances file says of each image, by image id in the order of the file.

    Args:
        file_names: the picture's file.
        objects: names of the different categories, in order of their first annotation; crowds count.
    """

    file_names: Mapping[int, str]
    objects: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class BoxedObject:
    """One annotated object: its category, and its box as left, top, right and bottom in pixels."""

    category: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxedImage:
    """A picture's file, its width and height in pixels, and its objects in the order of the file."""

    file_name: str
    size: tuple[int, int]
    objects: tuple[BoxedObject, ...]


def read_instances(path: str | Path) -> Instances:
    """Read a COCO instances file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no instances file, or an image, annotation or category of it lacks a field, has a
            wrong one, comes twice or is not there.
    """
    content = read_json(path, drop=("segmentation",))
    _refuse_other(path, content, ("images", "annotations", "categories"))
    names: dict[int, str] = {}
    for where, category in _rows(path, content, "categories"):
        _id(where, category, names)
        names[category["id"]] = _text(where, category, "name")
    files: dict[int, str] = {}
    for where, image in _rows(path, content, "images"):
        _id(where, image, files)
        files[image["id"]] = _text(where, image, "file_name")
    if not files:
        raise ValueError(f"{path} lists no images; at least one is needed")
    known: set[int] = set()
    for where, annotation in _rows(path, content, "annotations"):
        _id(where, annotation, known)
        known.add(annotation["id"])
        _known(where, annotation, "image_id", files)
        _known(where, annotation, "category_id", names)
    coco = _indexed(content)
    objects = {
        image_id: tuple(dict.fromkeys(names[each["category_id"]] for each in coco.imgToAnns[image_id]))
        for image_id in files
    }
    return Instances(files, objects)


def read_boxes(path: str | Path) -> list[BoxedImage]:
    """Where the objects of a COCO instances file are, image by image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no instances file, an image of it lacks its size, or an annotation its box.
    """
    instances = read_instances(path)
    content = read_json(path, drop=("segmentation",))
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[int, list[BoxedObject]] = {image_id: [] for image_id in instances.file_names}
    for where, annotation in _rows(path, content, "annotations"):
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(type(each) in (int, float) for each in box):
            raise ValueError(f"{where}: bbox is {shown(box)}; it must be four numbers")
        left, top, width, height = box
        corners = (left, top, left + width, top + height)
        objects[annotation["image_id"]].append(BoxedObject(names[annotation["category_id"]], corners))
    images = []
    for where, image in _rows(path, content, "images"):
        size: tuple[Any, Any] = (image.get("width"), image.get("height"))
        if not all(type(each) is int and each > 0 for each in size):
            raise ValueError(f"{where}: width and height are {shown(size)}; they must be whole numbers")
        images.append(BoxedImage(image["file_name"], size, tuple(objects[image["id"]])))
    return images


def read_captions(path: str | Path) -> dict[int, list[str]]:
    """The reference captions of each image in a COCO captions file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no captions file, or an annotation of it lacks a field or has a wrong one.
    """
    content = read_json(path)
    _refuse_other(path, content, ("annotations",))
    known: set[int] = set()
    for where, annotation in _rows(path, content, "annotations"):
        _id(where, annotation, known)
        known.add(annotation["id"])
        if type(annotation.get("image_id")) is not int:
            raise ValueError(
                f"{where}: image_id is {shown(annotation.get('image_id'))}; it must be a whole number"
            )
        if not isinstance(annotation.get("caption"), str):
            raise ValueError(f"{where}: the caption is {shown(annotation.get('caption'))}; it must be a text")
    annotations = _indexed(content).imgToAnns
    return {image_id: [each["caption"] for each in rows] for image_id, rows in annotations.items()}


def _indexed(content: dict[str, Any]) -> COCO:
    """The content as pycocotools holds it, which reports its progress by printing."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _refuse_other(path: str | Path, content: Any, keys: tuple[str, ...]) -> None:
    """Raise for a JSON value that is no COCO file."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no COCO file; it must hold an object with {', '.join(keys)}")
    for key in keys:
        if not isinstance(content.get(key), list):
            raise ValueError(
                f"{path} has no list {key!r} (found {examples(content, 6) or 'nothing'}); give a COCO file "
                f"with {', '.join(keys)}"
            )


def _rows(path: str | Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list with their places in words."""
    for number, row in enumerate(content[key], 1):
        where = f"{path}, {key}, record {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {shown(row)} is no object; each record must be one")
        yield where, row


def _id(where: str, row: dict[str, Any], taken: Any) -> None:
    value = row.get("id")
    if type(value) is not int:
        raise ValueError(f"{where}: the id is {shown(value)}; it must be a whole number")
    if value in taken:
        raise ValueError(f"{where}: the id {value} comes twice; ids must be unique")


def _text(where: str, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} is {shown(value)}; it must be a text")
    return value


def _known(where: str, row: dict[str, Any], key: str, taken: Mapping[int, str]) -> None:
    value = row.get(key)
    if type(value) is not int or value not in taken:
        raise ValueError(f"{where}: {key} is {shown(value)}, which the file does not list")
