"""R-Bench: its files and scenes as questions, marks, and the figures of hand-made answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vlmfix.evals.rbench_relation.marks import (
    BOX,
    MASK,
    marked_text,
    official_text,
    pixels,
    with_boxes,
    with_masks,
)
from vlmfix.evals.rbench_relation.official import mean_of_subsets, official_figures
from vlmfix.evals.rbench_relation.task import RBenchRelation

from tests.support import jobs
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.datasets import write_coco
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.tasks.protocol_files import load_protocol

HORSE = {
    "question_id": 1,
    "image": "a.jpg",
    "text": "Is the man riding the horse?",
    "label": "yes",
    "subject": "Man",
    "object": "Horse",
    "sub_box": [0.1, 0.2, 0.5, 0.8],
    "obj_box": [0.0, 0.5, 1.0, 1.0],
}
DOGS = HORSE | {
    "question_id": 2,
    "image": "b.jpg",
    "text": "Is the dog behind the other dog?",
    "label": "No",
    "subject": "Dog",
    "object": "Dog",
}
FILES = {"image": "image-level_filterd.json", "instance": "instance-level_filterd.json", "web": "web_v1.json"}


def data(root: Path, level: str, *rows: dict[str, Any], pictures: bool = False) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / FILES[level]).write_text(json.dumps(rows), encoding="utf-8")
    for row in rows if pictures else ():
        Image.new("RGB", (64, 48), (100, 100, 100)).save(root / "images" / row["image"], format="PNG")
    return root


def task(root: Path, protocol: str = "rbench.image", **changes: Any) -> RBenchRelation:
    return RBenchRelation(DataFolder.find(root), load_protocol(f"{protocol}/custom").with_(**changes))


def test_marks_in_words() -> None:
    for mark in (marked_text, official_text):
        assert mark("Is the man riding the horse?", "Man", "Horse", BOX) == (
            "Is the man in red bounding box riding the horse in green bounding box?"
        )
        assert mark("Is the man riding the horse?", "man", "horse", MASK) == (
            "Is the man in red mask riding the horse in green mask?"
        )


@pytest.mark.parametrize(
    ("text", "subject", "object", "marked"),
    [
        ("Is the Dog behind the dog?", "dog", "dog", "Is the Dog in red mask behind the dog in green mask?"),
        (
            "Is the horse under the man?",
            "man",
            "horse",
            "Is the horse in green mask under the man in red mask?",
        ),
        ("Is a boxer in a box?", "boxer", "box", "Is a boxer in red mask in a box in green mask?"),
        (
            "Is the redhead by a red man?",
            "man",
            "red",
            "Is the redhead by a red in green mask man in red mask?",
        ),
        ("Is the dog there?", "dog", "dog", None),
        ("Is the fire hydrant there?", "fire hydrant", "fire", None),
        ("Is the woman there with a cup?", "man", "cup", None),
        ("Is the man there?", "man", "cup", None),
    ],
)
def test_whole_words_are_marked(text: str, subject: str, object: str, marked: str | None) -> None:
    assert marked_text(text, subject, object, MASK) == marked


def test_the_official_words_damage_some_questions() -> None:
    assert official_text("Is the dog by the dog?", "dog", "dog", MASK) == (
        "Is the dog in green mask in red mask by the dog in green mask in red mask?"
    )
    assert official_text("Is the woman there?", "man", "re", MASK) == (
        "Is the woman in re in green maskd mask there in green mask?"
    )


def test_boxes_on_the_picture() -> None:
    assert pixels((0.1, 0.2, 0.5, 0.8), (640, 480)) == pytest.approx((64, 96, 320, 384))
    grey = Image.new("RGB", (640, 480), (100, 100, 100))
    marked = np.asarray(with_boxes(grey, [(0.1, 0.2, 0.5, 0.8), (0.6, 0.5, 0.9, 0.9)]))
    red = (marked == (255, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (96, 384, 64, 320)
    assert red[200].sum() == red[:, 200].sum() == 8  # two lines of four pixels
    assert (marked == (0, 255, 0)).all(axis=2)[300].sum() == 8
    assert np.asarray(grey)[96, 64].tolist() == [100, 100, 100]


def test_masks_on_the_picture() -> None:
    picture = Image.new("RGB", (4, 4), (100, 100, 100))
    mask = Image.fromarray(np.array([[1, 0], [0, 2]], dtype=np.uint8))
    marked = np.asarray(with_masks(picture, mask))
    share = 120 / 255
    for place, color in (((0, 0), (250, 0, 45)), ((3, 3), (100, 250, 0))):
        expected = [100 + share * (each - 100) for each in color]
        assert marked[place] == pytest.approx(expected, abs=1)
    assert marked[0, 3].tolist() == [100, 100, 100]


def test_image_level(tmp_path: Path) -> None:
    own = task(data(tmp_path, "image", HORSE, DOGS))
    samples = own.samples(tmp_path / "built")
    assert [sample.id for sample in samples] == ["rbench_relation/image/1", "rbench_relation/image/2"]
    assert (samples[1].prompt, samples[1].target, samples[1].cluster) == (DOGS["text"], "no", "b.jpg")
    assert samples[0].image == tmp_path / "images" / "a.jpg"
    assert own.folder.used["rbench image"]["rows"] == 2
    assert not (tmp_path / "built").exists()


def test_instance_level(tmp_path: Path) -> None:
    own = task(data(tmp_path, "instance", HORSE, DOGS, pictures=True), "rbench.instance-box")
    built = tmp_path / "built"
    first, second = own.samples(built)
    assert first.prompt == "Is the man in red bounding box riding the horse in green bounding box?"
    assert second.prompt.count("bounding box") == 2
    assert first.image is not None
    assert first.image.parent == built / "pictures"
    assert Image.open(first.image).getpixel((7, 20)) == (255, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in (built / "pictures").iterdir()}
    assert [each.image for each in own.samples(built)] == [first.image, second.image]
    assert {path: path.stat().st_mtime_ns for path in (built / "pictures").iterdir()} == before


def test_missing_pictures_are_missing_when_they_are_asked_about(tmp_path: Path) -> None:
    own = task(data(tmp_path, "instance", HORSE), "rbench.instance-box")
    [sample] = own.samples(tmp_path / "built")
    assert sample.image == tmp_path / "images" / "a.jpg"


def test_masks(tmp_path: Path) -> None:
    root = data(tmp_path, "instance", HORSE, DOGS, pictures=True)
    (root / "instance_mask").mkdir()
    Image.fromarray(np.ones((2, 2), dtype=np.uint8)).save(root / "instance_mask" / "1.png")
    first, second = task(root, "rbench.instance-mask").samples(tmp_path / "built")
    assert first.prompt == "Is the man in red mask riding the horse in green mask?"
    assert first.image is not None
    assert Image.open(first.image).getpixel((7, 20)) == pytest.approx((171, 53, 74), abs=1)
    assert second.image == root / "instance_mask" / "2.png"  # is not there
    (root / "instance_mask" / "2.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"2.png is no picture; a mask must be one"):
        task(root, "rbench.instance-mask").samples(tmp_path / "built")
    Image.new("RGB", (2, 2)).save(root / "instance_mask" / "2.png")
    with pytest.raises(ValueError, match=r"2.png has 3 channels; a mask must have one"):
        task(root, "rbench.instance-mask").samples(tmp_path / "built")


def test_questions_that_cannot_be_marked(tmp_path: Path) -> None:
    unclear = DOGS | {"text": "Is the dog there?"}
    root = data(tmp_path, "instance", HORSE, unclear)
    own = task(root, "rbench.instance-box")
    with pytest.warns(
        UserWarning, match=r"1 of 2 questions do not name their two objects .*\(2\) and are left"
    ):
        assert len(own.samples(tmp_path)) == 1
    official = task(root, "rbench.instance-box", marking="official").samples(tmp_path)
    assert official[1].prompt == ("Is the dog in green bounding box in red bounding box there?")
    with pytest.raises(ValueError, match=r"choose --protocol rbench.instance-box\+marking=official"):
        task(data(tmp_path, "instance", unclear), "rbench.instance-box").samples(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "unknown"}, 'record 1: the label is "unknown"; it must be yes or no'),
        ({"sub_box": [10, 20, 300, 400]}, r"sub_box is \[10, 20, 300, 400\], in pixels"),
        (
            {"obj_box": [0.5, 0, 0.4, 1]},
            r"obj_box is \[0.5, 0, 0.4, 1\]; it must be left, top, right, bottom",
        ),
        ({"obj_box": [0, 0, 1]}, r"obj_box is \[0, 0, 1\]; it must be four numbers"),
        ({"subject": " "}, 'subject is " "; it must be a text'),
        ({"question_id": 2}, "question_id 2 comes twice"),
    ],
)
def test_questions_that_are_none(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    own = task(data(tmp_path, "instance", HORSE | change, DOGS), "rbench.instance-box")
    with pytest.raises(ValueError, match=message):
        own.samples(tmp_path)


def test_a_level_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no web_v1.json or \*\*/web_v1.json"):
        task(data(tmp_path, "image", HORSE), "rbench.web").samples(tmp_path)


def test_kinds_of_pictures_from_the_web(tmp_path: Path) -> None:
    kinds = ("counterfactual", "counterfactual", "counterfactual", "illusion")
    rows = [HORSE | {"question_id": number, "type": kind} for number, kind in enumerate(kinds)]
    own = task(data(tmp_path, "web", *rows), "rbench.web")
    samples = own.samples(tmp_path)
    found = metrics_of(own, samples, ["Yes", "Yes", "no", "no"], [False] * 4).metrics
    assert {each.group: each.value for each in found if each.name == "accuracy"} == {
        "": 0.5,
        "counterfactual": pytest.approx(2 / 3),
        "illusion": 0,
    }


def test_figures_of_the_spec(tmp_path: Path) -> None:
    said: list[str | None] = ["Yes", "Yes, it is.", "no", "There is not"]
    rows = [
        HORSE | {"question_id": number, "label": label}
        for number, label in enumerate(("yes", "no", "yes", "no"))
    ]
    own = task(data(tmp_path, "image", *rows))
    found = metrics_of(own, own.samples(tmp_path), said, [False] * 4).metrics
    values = {each.name: each.value for each in found}
    assert [values[name] for name in ("accuracy", "precision", "recall", "F1")] == [0.5] * 4
    official = official_figures([str(text) for text in said], ["yes", "no", "yes", "no"])
    assert {name: f"{value:.6f}" for name, value in official.items()} == {
        "accuracy": "0.500000",
        "precision": "0.499998",
        "recall": "0.499998",
        "f1": "0.499993",
        "yes_ratio": "0.500000",
    }
    other = official_figures(["Yes"], ["yes"])
    assert mean_of_subsets([official, other])["accuracy"] == 0.75
    with pytest.raises(ValueError, match="no answers to score"):
        official_figures([], [])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("rbench") / "scenes", count=12, seed=77)


@pytest.mark.parametrize("protocol", ["rbench.tiny", "rbench.instance-box"])
def test_scenes(protocol: str, scenes: Path, tmp_path: Path) -> None:
    samples = task(scenes, protocol).samples(tmp_path)
    content = json.loads((scenes / "instances.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    boxes: dict[tuple[str, str], list[list[float]]] = {}
    for each in content["annotations"]:
        key = f"{each['image_id']:012}.png", names[each["category_id"]]
        boxes.setdefault(key, []).append(each["bbox"])
    targets = [sample.target for sample in samples]
    assert targets.count("yes") == targets.count("no") > 5
    for sample in samples:
        axis, relation = (0, "to the left of") if "left" in sample.id else (1, "above")
        asked = sample.meta["question"].removesuffix(" in the image?").removesuffix("?")
        pair = [
            part.split(" ", 1)[1]
            for part in asked.replace("Is there", "Is").removeprefix("Is ").split(f" {relation} ")
        ]
        [first], [second] = (boxes[sample.cluster, name] for name in pair)
        if sample.target == "no":
            first, second = second, first
        assert first[axis] + first[axis + 2] <= second[axis]
        assert ("red bounding box" in sample.prompt) == (protocol != "rbench.tiny")


@pytest.mark.parametrize("protocol", ["rbench.web", "rbench.instance-mask"])
def test_what_scenes_do_not_have(protocol: str, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose --protocol rbench"):
        task(scenes, protocol).samples(tmp_path)


def test_a_job(
    scenes: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("--data", scenes, "--limit", 4, "--method", "greedy", "--protocol", "rbench.instance-box")
    jobs.evaluate(tmp_path, "rbench_relation", *options)
    before, found = jobs.metrics(tmp_path), jobs.results(tmp_path)
    assert found["metrics"][0]["name"] == "accuracy"
    assert (found["counts"]["answered"], found["counts"]["failed"]) == (len(jobs.records(tmp_path)), 0)
    assert (tmp_path / "report.html").is_file()
    jobs.evaluate(tmp_path, "rbench_relation", *options)
    assert len(jobs.records(tmp_path)) == found["counts"]["samples"]
    assert jobs.metrics(tmp_path) == before
