"""Boxes of COCO instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmfix.evaluation.datasets.annotations import BoxedImage, BoxedObject, read_boxes


def instances(path: Path, box: Any = (10, 20, 30, 40), **image: Any) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 96} | image],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": box}],
        "categories": [{"id": 3, "name": "cup"}],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_boxes(tmp_path: Path) -> None:
    [found] = read_boxes(instances(tmp_path / "instances.json"))
    assert found == BoxedImage("1.png", (64, 96), (BoxedObject("cup", (10, 20, 40, 60)),))


@pytest.mark.parametrize("box", [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True]])
def test_boxes_that_are_none(box: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"annotations, record 1: bbox is .*; it must be four numbers"):
        read_boxes(instances(tmp_path / "instances.json", box))


def test_pictures_without_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images, record 1: width and height are \[64, null\]"):
        read_boxes(instances(tmp_path / "instances.json", height=None))
