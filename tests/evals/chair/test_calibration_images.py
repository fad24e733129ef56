"""Annotated pictures: which ones are taken, and what is wrong in captions of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from vlmfix.evals.chair.calibration_images import annotated_images, caption_pairs

from tests.support import tinycoco
from vlmfix.evaluation.files.readers import read_json


def test_captions_of_scenes_are_judged(world: Path) -> None:
    images = annotated_images(world, 4)
    listed = read_json(world / "instances.json")
    names = [each["file_name"] for each in listed["images"]]
    assert [Path(str(each.image)).name for each in images] == names[:4]
    categories = {each["id"]: each["name"] for each in listed["categories"]}
    for image, entry in zip(images, listed["images"], strict=False):
        there = {
            categories[each["category_id"]]
            for each in listed["annotations"]
            if each["image_id"] == entry["id"]
        }
        caption = (
            "It's crowded: a Dog, two buses, a stop sign's shadow and a potted plant, cats cannot be seen."
        )
        places = {
            name: caption.lower().index(name) for name in ("dog", "bus", "stop sign", "potted plant", "cat")
        }
        expected = [(places[name], name not in there) for name in places]
        assert [tuple(word) for word in image.judge(caption)] == expected
        named = f"There is a {' and a '.join(sorted(there))}."
        assert [word.hallucinated for word in image.judge(named)] == [False] * len(there)
        assert image.judge("Nothing at all.") == []


def test_training_images_that_are_there_come_first(world: Path, tmp_path: Path) -> None:
    for folder in ("annotations", "train2014", "val2014"):
        (tmp_path / folder).mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text("{}")
    shutil.copy(world / "instances.json", tmp_path / "annotations" / "instances_train2014.json")
    some = sorted((world / "images").iterdir())[2:4]
    for path in some:
        shutil.copy(path, tmp_path / "train2014")
    found = [each.image for each in annotated_images(tmp_path, 6)]
    assert found == [tmp_path / "train2014" / path.name for path in some]


def test_pairs_of_captions_hallucinate_what_is_often_there(tmp_path: Path) -> None:
    """Of images of person, car, bus; car, person, dog; dog, person, cat; dog alone, and nothing."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(tinycoco.instances()))
    for image_id in tinycoco.OBJECTS:
        Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / tinycoco.name_of(image_id))
    pairs = caption_pairs(tmp_path, 10)
    assert [pair.image for pair in pairs] == [
        tmp_path / "val2014" / tinycoco.name_of(each) for each in (9, 25, 42, 74)
    ]
    assert [(pair.truthful, pair.hallucinated) for pair in pairs] == [
        (f"The image shows {true}.", f"The image shows {false}.")
        for true, false in (
            ("a bus, a car and a person", "a dog, a car and a cat"),
            ("a car, a dog and a person", "a bus, a dog and a cat"),
            ("a cat, a dog and a person", "a car, a dog and a bus"),
            ("a dog", "a person"),
        )
    ]
    assert [pair.image for pair in caption_pairs(tmp_path, 3)] == [pair.image for pair in pairs[:3]]
    with pytest.raises(ValueError, match=r"1 of them, show 3 kinds of objects, too few .* \(--limit\)"):
        caption_pairs(tmp_path, 1)


def test_what_is_missing_is_said(world: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no"):
        annotated_images(tmp_path / "nothing", 6)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(FileNotFoundError, match=r"has no annotated pictures.*annotations/instances_\*.json"):
        annotated_images(tmp_path, 6)
    shutil.copy(world / "instances.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="has none of the pictures"):
        annotated_images(tmp_path, 6)
    (tmp_path / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="has no annotated pictures"):
        annotated_images(tmp_path, 6)
