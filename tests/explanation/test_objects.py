"""Objects of annotated pictures: masks of COCO in all their forms, and mentions as CHAIR reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vlmfix.evals.chair.explained_objects import demo_objects, objects_in, objects_of

from vlmfix.explanation.objects import read_masks

NAMES, SIZE, FILE = {1: "cat", 2: "dog"}, (8, 6), Path("instances.json")


def square(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((6, 8), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_polygons_run_lengths_boxes_and_crowds() -> None:
    annotations = [
        {"id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3], [6, 4, 8, 4, 8, 6, 6, 6]]},
        {"id": 2, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [0, 2, 46]}},
        {"id": 3, "category_id": 2, "bbox": [2, 0, 3, 4]},
        {"id": 4, "category_id": 2, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [42, 6]}},
    ]
    masks, crowds = read_masks(annotations, NAMES, SIZE, FILE)
    assert set(masks) == {"cat", "dog"}
    first_column = square(0, 0, 1, 2)  # run lengths go down the columns, zeros first
    np.testing.assert_array_equal(masks["cat"], square(1, 1, 4, 3) | square(6, 4, 8, 6) | first_column)
    np.testing.assert_array_equal(masks["dog"], square(2, 0, 5, 4))
    np.testing.assert_array_equal(crowds["dog"], square(7, 0, 8, 6))


@pytest.mark.parametrize(
    "segmentation",
    [{"size": [8, 6], "counts": [48]}, {"counts": [48]}, [["x"]], {"size": [6, 8], "counts": [-3]}],
)
def test_broken_segmentations_are_refused(segmentation: object) -> None:
    with pytest.raises(ValueError, match=r"instances\.json: the segmentation of annotation 7 cannot be read"):
        read_masks([{"id": 7, "category_id": 1, "segmentation": segmentation}], NAMES, SIZE, FILE)


def test_objects_of_scenes(world: Path) -> None:
    found = objects_in(world, 3)
    assert len(found) == 3
    path, objects = found[0]
    content = json.loads((world / "instances.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    there = {names[each["category_id"]] for each in content["annotations"] if each["image_id"] == 1}
    assert set(objects.masks) == there
    with Image.open(path) as opened:
        assert {mask.shape for mask in objects.masks.values()} == {opened.size[::-1]}
    alone = objects_of(path, world / "instances.json")
    for name, mask in objects.masks.items():
        np.testing.assert_array_equal(alone.masks[name], mask)


def test_mentions_are_judged() -> None:
    answer = "Two potted plants, a couch and a tv."
    found = {each.category: each for each in demo_objects().mentions(answer)}
    assert {name: each.is_present for name, each in found.items()} == {
        "potted plant": True,
        "couch": True,
        "tv": False,
    }
    spans = {name: answer[each.start : each.stop] for name, each in found.items()}
    assert spans == {"potted plant": "potted plants", "couch": "couch", "tv": "tv"}


def test_pictures_that_are_not_listed(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lists no picture 'other\.png'"):
        objects_of(tmp_path / "other.png", world / "instances.json")
