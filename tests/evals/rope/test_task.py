"""ROPE: its files and scenes as samples, slots of answers, and the figures of hand-made answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vlmfix.evals.rope import dataset
from vlmfix.evals.rope.entries import picture_name
from vlmfix.evals.rope.metrics import gap, macro
from vlmfix.evals.rope.slots import Slots, first_field, official_slots, read_slots, whole_answer
from vlmfix.evals.rope.task import Rope, classes_of

from tests.support import jobs
from tests.support.outcomes import metrics_of
from vlmfix.evaluation.analysis.results import Metric
from vlmfix.evaluation.datasets import write_coco
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.sample import Sample
from vlmfix.evaluation.tasks.protocol_files import load_protocol

AAAAB = ["cup", "cup", "cup", "cup", "tie"]
MIXED = ["cell phone", "wine glass", "tv", "dog", "tv"]
SAID = [
    "obj1: cup, obj2: cup, obj3: cup, obj4: cup, obj5: tie",
    "obj1: Cup., obj2: dog",
    "",
    "obj1: cell phone, obj2: wine glass, obj3: tv, obj4: tv, obj5: tv",
]
UNMARKED = "cup, cup, cup, cup, cup"
EMPTY = (None,) * 5


def entry(name: str, classes: list[str], source: str = "COCO") -> dict[str, Any]:
    objects = [{"name": each, "bbox_number": number} for number, each in enumerate(classes, 1)]
    return {"folder": f"images/{name}.jpg", "data_source": source, "objects": objects[::-1]}


ENTRIES = [entry(f"{number}", AAAAB if number < 4 else MIXED) for number in range(1, 5)]


def data(root: Path, **splits: list[dict[str, Any]]) -> Path:
    (root / "validation").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (root / "validation" / f"{split}_data.json").write_text(json.dumps(rows), encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def _few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests have all classes of their ROPE."""
    monkeypatch.setattr(dataset, "OFFICIAL_CLASSES", 6)


def task(root: Path, protocol: str = "rope.default") -> Rope:
    return Rope(DataFolder.find(root), load_protocol(f"{protocol}/custom"))


def samples(root: Path, protocol: str = "rope.default") -> tuple[Rope, list[Sample]]:
    own = task(data(root, AAAAB=ENTRIES), protocol)
    return own, own.samples(root)


def figures(metrics: list[Metric], group: str = "") -> dict[str, float]:
    return {each.name: round(each.value, 6) for each in metrics if each.group == group and each.is_defined}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SAID[0], Slots(("cup", "cup", "cup", "cup", "tie"))),
        (SAID[1], Slots(("cup", "dog", None, None, None))),
        ("", Slots(EMPTY)),
        (UNMARKED, Slots(("cup",) * 5, unmarked=True)),
        ("cup, cup", Slots(EMPTY)),
        ("A cup and a tie.", Slots(EMPTY)),
        (
            "Obj.1: <Wine  Glass> obj 2: tv\nOBJ3:dog, a big one",
            Slots(("wine glass", "tv", "dog", None, None)),
        ),
        ("obj1: cup, obj1: dog, obj7: tv", Slots(("cup", None, None, None, None))),
        ("obj1: , obj2: .", Slots(EMPTY)),
    ],
)
def test_slots(text: str, expected: Slots) -> None:
    assert read_slots(text) == expected


def test_one_class() -> None:
    assert [first_field(text) for text in (" cup, obj3: dog", "Wine glass.\ncup", "", ",")] == [
        "cup",
        "wine glass",
        None,
        None,
    ]
    assert [whole_answer(text) for text in ("Cup.", "A cup", " ")] == ["cup", "a cup", None]


def test_official_slots() -> None:
    assert official_slots(SAID[1]).classes == ("cup.", "dog", None, None, None)
    assert (official_slots(SAID[1]).counted, official_slots(UNMARKED).counted) == (5, 10)
    assert official_slots(UNMARKED).classes == ("c", "u", "p", ",", " ")
    assert official_slots("").classes == EMPTY


def test_names_of_pictures() -> None:
    names = ["a/COCO_1.jpg", "COCO_1.PNG", "COCO_1", "ADE_val.2"]
    assert [picture_name(name) for name in names] == ["COCO_1", "COCO_1", "COCO_1", "ADE_val.2"]


def test_figures_of_the_spec(tmp_path: Path) -> None:
    own, asked = samples(tmp_path)
    found = metrics_of(own, asked, SAID, [False] * 4)
    assert figures(found.metrics) == {
        "slot accuracy": 0.5,
        "all five right": 0.25,
        "slot 1": 0.75,
        "slot 2": 0.5,
        "slot 3": 0.5,
        "slot 4": 0.25,
        "slot 5": 0.5,
        "first class repeated": 0.45,  # 4 + 4 + 0 + 1 of 20
        "unparsed slots": 0.4,
        "words": 6.5,
        "truncated": 0,
    }
    assert found.unparsed == 1
    said = [*SAID[:2], UNMARKED, SAID[3]]
    found = metrics_of(own, asked, said, [False] * 4)
    assert figures(found.metrics)["slot accuracy"] == 0.7
    [official] = found.parsers["official"]
    assert (official.parts.sum(), official.wholes.sum(), official.value) == (9, 25, 0.36)
    assert own.judge(asked[2], UNMARKED, truncated=False).verdict == "4 of 5 right, read in order"


def test_failed_samples_add_nothing(tmp_path: Path) -> None:
    own, asked = samples(tmp_path)
    found = metrics_of(own, asked, [None, SAID[1], None, SAID[3]], [False] * 4)
    assert figures(found.metrics)["slot accuracy"] == 0.5
    assert figures(found.metrics)["all five right"] == 0
    assert found.parsers["official"][0].wholes.sum() == 10


def test_splits_have_the_same_weight(tmp_path: Path) -> None:
    own = task(data(tmp_path, AAAAB=ENTRIES[:3], merged_mixed=ENTRIES[3:]))
    asked = own.samples(tmp_path)
    assert [sample.id.split("/")[2] for sample in asked] == ["AAAAB"] * 3 + ["mixed"]
    found = metrics_of(own, asked, [SAID[0], SAID[0], SAID[0], ""], [False] * 4).metrics
    values = {each.group: each.value for each in found if each.name == "slot accuracy"}
    assert values == {"": 0.5, "AAAAB": 1, "mixed": 0}


def test_a_sample_about_five_objects(tmp_path: Path) -> None:
    own, [first, *_] = samples(tmp_path)
    assert (first.id, first.cluster, first.target) == ("rope/validation/AAAAB/1", "images/1.jpg", AAAAB)
    assert first.image == tmp_path / "images" / "1.png"
    assert "from this list: cell phone, cup, dog, tie, tv, wine glass. Answer" in first.prompt
    assert own.target(first) == "obj1: cup, obj2: cup, obj3: cup, obj4: cup, obj5: tie"
    assert own.folder.used["rope validation AAAAB"]["rows"] == 4
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").touch()
    assert own.samples(tmp_path)[0].image == tmp_path / "images" / "1.jpg"


def test_classes_are_those_of_the_source(tmp_path: Path) -> None:
    rows = [ENTRIES[0], entry("ade", ["lamp", "wall", "sky", "bed", "rug"], "ADE")]
    root = data(tmp_path, AAAAB=rows)
    with pytest.warns(UserWarning, match="classes in the files of validation and 6 in ROPE") as told:
        [first, second] = task(root).samples(tmp_path)
    assert [str(each.message)[:18] for each in told] == ["ADE has 5 classes ", "COCO has 2 classes"]
    assert "list: cup, tie. Answer" in first.prompt
    assert "list: bed, lamp, rug, sky, wall. Answer" in second.prompt


def test_single(tmp_path: Path) -> None:
    own, asked = samples(tmp_path, "rope.single")
    assert len(asked) == 20
    assert (asked[4].id, asked[4].target, asked[4].cluster) == (
        "rope/validation/AAAAB/1/5",
        ["tie"],
        "images/1.jpg",
    )
    assert "class of Obj.5, the object in the box with the number 5" in asked[4].prompt
    said: list[str | None] = ["cup", "Cup.", "dog", "cup", "tie", *["cup"] * 4, "tie", None, *["cup"] * 9]
    found = metrics_of(own, asked, said, [False] * 20)
    assert figures(found.metrics)["slot accuracy"] == round((4 + 5 + 3) / 19, 6)
    assert (
        figures(found.metrics)["all five right"] == 0.333333
    )  # the picture with a failed sample is left out
    assert figures(found.metrics)["slot 1"] == 0.666667
    [official] = found.parsers["official"]
    assert (official.parts.sum(), official.wholes.sum()) == (3 + 5 + 3, 19)  # "Cup." is no class


def test_teacher_forcing(tmp_path: Path) -> None:
    own, asked = samples(tmp_path, "rope.teacher-forcing")
    assert asked[0].prompt.endswith("obj5: <class5> obj1:")
    assert asked[4].prompt.endswith("obj5: <class5> obj1: cup, obj2: cup, obj3: cup, obj4: cup, obj5:")
    assert asked[4].target == ["tie"]
    found = metrics_of(own, asked, ["cup, obj2: cup"] * 20, [False] * 20)
    assert figures(found.metrics)["slot accuracy"] == 0.6
    assert list(found.parsers) == ["normalized"]


def test_student_forcing_is_refused(tmp_path: Path) -> None:
    root = data(tmp_path, AAAAB=ENTRIES)
    protocol = load_protocol("rope.teacher-forcing").with_(setting="student_forcing")
    with pytest.raises(ValueError, match="student_forcing asks with the model's own earlier answers"):
        Rope(DataFolder.find(root), protocol).samples(tmp_path)


def test_means_over_classes() -> None:
    right, said = ["cup", "cup", "tie", "dog"], ["cup", "tie", "tie", None]
    found = macro(said, right)
    assert found.precision == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.recall == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.f1 == pytest.approx(0.5)
    parsed = macro(said, right, parsed_only=True)
    assert (parsed.precision, parsed.recall) == (0.75, 0.75)
    assert macro([], []).f1 == 0


def test_the_gap_is_paired(tmp_path: Path) -> None:
    own, asked = samples(tmp_path)
    alone_task, alone = samples(tmp_path, "rope.single")
    together = classes_of(
        [own.judge(each, text, truncated=False) for each, text in zip(asked, SAID, strict=True)]
    )
    said = classes_of([alone_task.judge(each, each.target[0], truncated=False) for each in alone])
    found = gap((alone, said), (asked, together))
    assert (found.value, found.samples, found.clusters) == (0.5, 20, 4)
    assert found.low is not None
    assert found.low < 0.5
    missing = gap((alone[:5], said[:5]), (asked, together))
    assert (missing.value, missing.samples) == (0, 5)
    with pytest.raises(ValueError, match="no object is answered both"):
        gap((alone, [None] * 20), (asked, together))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": []}, r"record 1: objects are \[\]; they must be five with the bbox_number 1 to 5"),
        ({"objects": "x"}, "record 1: objects are a text that is no JSON"),
        ({"objects": [{"name": "cup", "bbox_number": 1}] * 5}, "they must be five with the bbox_number"),
        ({"objects": [{"name": "", "bbox_number": 1}]}, 'an object: name is ""; it must be a text'),
        ({"folder": "images/2.png"}, "the picture 2 comes twice; names must be unique in a file"),
        ({"data_source": None}, "data_source is null; it must be a text"),
    ],
)
def test_files_that_are_none(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        task(data(tmp_path, AAAAB=[ENTRIES[0] | change, ENTRIES[1]])).samples(tmp_path)


def test_objects_as_text(tmp_path: Path) -> None:
    rows = [row | {"objects": json.dumps(row["objects"])} for row in ENTRIES]
    assert task(data(tmp_path, AAAAB=rows)).samples(tmp_path)[3].target == MIXED


def test_a_part_without_files(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has none of AAAAB_data.json, .* in validation/, which rope"
    ):
        task(data(tmp_path)).samples(tmp_path)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("rope") / "scenes", count=12, seed=77)


def test_scenes(scenes: Path, tmp_path: Path) -> None:
    asked = task(scenes, "rope.tiny").samples(tmp_path)
    assert asked
    for sample in asked:
        assert (len(set(sample.target)) == 5) == (sample.meta["split"] == "heterogenous")
        assert set(sample.target) <= set(
            sample.prompt.partition("list: ")[2].partition(". Answer")[0].split(", ")
        )
        assert sample.image is not None
        marked = np.asarray(Image.open(sample.image), dtype=int)
        plain = np.asarray(Image.open(scenes / "images" / sample.cluster), dtype=int)
        changed = (marked != plain).any(axis=2)
        assert ((marked == (255, 0, 0)).all(axis=2) & changed).sum() > 200


def test_scenes_without_five_objects(tmp_path: Path) -> None:
    few = write_coco(tmp_path / "few", count=1, seed=1)
    content = json.loads((few / "instances.json").read_text())
    (few / "instances.json").write_text(json.dumps(content | {"annotations": content["annotations"][:2]}))
    with pytest.raises(ValueError, match="no scene has 5 objects"):
        task(few, "rope.tiny").samples(tmp_path)


def test_a_job(
    scenes: Path, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs.load_once(loaded, monkeypatch)
    options = ("rope", "--data", scenes, "--limit", 2, "--method", "greedy")
    jobs.evaluate(tmp_path, *options)
    before, found = jobs.metrics(tmp_path), jobs.results(tmp_path)
    assert found["metrics"][0]["name"] == "slot accuracy"
    assert set(found["parsers"]) == {"normalized", "official"}
    assert (found["counts"]["answered"], found["counts"]["failed"]) == (2, 0)
    assert (tmp_path / "report.html").is_file()
    jobs.evaluate(tmp_path, *options)
    assert len(jobs.records(tmp_path)) == 2
    assert jobs.metrics(tmp_path) == before
