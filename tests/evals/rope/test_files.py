"""Files of answers scored with ROPE's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.rope.score_command import score_files

from tests.support import jobs
from vlmfix.evaluation.files.answers import Keys

GOLD = {
    "COCO_1": ["cup", "cup", "cup", "cup", "tie"],
    "COCO_2": ["cup", "cup", "cup", "cup", "tie"],
    "ADE_3": ["cup", "cup", "cup", "cup", "tie"],
    "000000000004": ["cell phone", "wine glass", "tv", "dog", "tv"],
}
TOGETHER = {
    "COCO_1.png": "obj1: cup, obj2: cup, obj3: cup, obj4: cup, obj5: tie",
    "COCO_2.png": "obj1: Cup., obj2: dog",
    "ADE_3.png": "cup, cup, cup, cup, cup",
    "000000000004.png": "obj1: cell phone, obj2: wine glass, obj3: tv, obj4: tv, obj5: tv",
}
ALONE = {f"{name}-{slot}": gold[slot - 1] for name, gold in GOLD.items() for slot in range(1, 6)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "folder": f"images/{name}.jpg",
            "data_source": "COCO",
            "objects": [{"name": each, "bbox_number": number} for number, each in enumerate(gold, 1)],
        }
        for name, gold in GOLD.items()
    ]
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "AAAAB_data.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def write(data: Path, content: Any, name: str = "answers.json") -> Path:
    (data / name).write_text(json.dumps(content), encoding="utf-8")
    return data / name


def scored(data: Path, content: Any, setting: str = "default", **options: Any) -> dict[str, Any]:
    path = write(data, content)
    found = score_files([path], [setting], data, "validation", "AAAAB", Keys(), **options)
    return dict(found.document)


def test_figures_of_the_spec(data: Path) -> None:
    document = scored(data, TOGETHER)
    found = document["settings"]["default"]["secondary"]
    assert [found["normalized"][name] for name in ("right", "slots counted", "accuracy")] == [14, 20, 0.7]
    assert [found["official"][name] for name in ("right", "slots counted", "accuracy")] == [9, 25, 0.36]
    # cup, tie, cell phone, wine glass, tv, dog: of what was said, of what is there
    assert found["normalized"]["macro precision"] == pytest.approx((9 / 10 + 1 + 1 + 1 + 2 / 3 + 0) / 6)
    assert found["normalized"]["macro recall"] == pytest.approx((9 / 12 + 1 / 3 + 1 + 1 + 1 + 0) / 6)
    assert document["notes"] == [
        "default: 1 answers without obj1: and so on, whose five fields were taken in order"
    ]


def test_names_as_files_spell_them(data: Path) -> None:
    expected = scored(data, TOGETHER)["settings"]["default"]["secondary"]
    plain = {f"images/{name.removesuffix('.png')}": text for name, text in TOGETHER.items()}
    assert scored(data, plain)["settings"]["default"]["secondary"] == expected
    numbers = [{"id": 4 if "4" in name else name, "answer": text} for name, text in TOGETHER.items()]
    assert scored(data, numbers)["settings"]["default"]["secondary"] == expected
    records = [{"image": name, "answer": text} for name, text in TOGETHER.items()]
    assert scored(data, records)["settings"]["default"]["secondary"] == expected


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_single(ending: str, data: Path) -> None:
    given = {f"{key}{ending}": text for key, text in ALONE.items()}
    given[f"COCO_1-1{ending}"] = "Cup."
    found = scored(data, given, "single")["settings"]["single"]["secondary"]
    assert (found["normalized"]["accuracy"], found["official"]["accuracy"]) == (1, 0.95)


@pytest.mark.parametrize("setting", ["teacher_forcing", "student_forcing"])
def test_forced_settings(setting: str, data: Path) -> None:
    given = {key: f" {text}, obj{1 + int(key[-1])}: dog" for key, text in ALONE.items()}
    found = scored(data, given, setting)["settings"][setting]
    assert found["secondary"]["normalized"]["accuracy"] == 1
    assert list(found["secondary"]) == ["normalized"]


def test_the_gap(data: Path) -> None:
    paths = [write(data, TOGETHER, "together.json"), write(data, ALONE, "alone.json")]
    found = score_files(paths, ["default", "single"], data, "validation", "AAAAB", Keys()).document
    assert found["multi-object gap"]["value"] == pytest.approx(0.3)
    assert found["multi-object gap"]["samples"] == 20
    assert found["multi-object gap"]["low"] < 0.3 < found["multi-object gap"]["high"]


def test_answers_that_do_not_fit(data: Path) -> None:
    with pytest.raises(
        ValueError, match=r"1 questions without an answer \(COCO_1\); 1 answers with an unknown"
    ):
        scored(data, {"x.png" if name == "COCO_1.png" else name: text for name, text in TOGETHER.items()})
    with pytest.raises(
        ValueError, match=r"20 questions without an answer .*; 4 answers with an unknown pict"
    ):
        scored(data, [{"image": name, "answer": text} for name, text in TOGETHER.items()], "single")
    with pytest.raises(
        ValueError, match=r"4 questions without an answer .*; 20 answers with an unknown pict"
    ):
        scored(data, ALONE)
    with pytest.raises(
        ValueError, match="no answer is of a picture of this split; check --split, --part and"
    ):
        scored(data, ALONE, partial=True)
    partial = scored(data, {"COCO_1.png": TOGETHER["COCO_1.png"]}, partial=True)
    assert partial["settings"]["default"]["secondary"]["normalized"]["accuracy"] == 1
    with pytest.raises(ValueError, match="no name of a picture to join by"):
        scored(data, [{"answer": "cup"}])


def test_the_command(data: Path) -> None:
    together, alone = write(data, TOGETHER), write(data, ALONE, "alone.json")
    command = ("score", "rope", "--data", data, "--split", "AAAAB", "--answers", together)
    result = jobs.cli(*command, "--answers", alone, "--setting", "default", "--setting", "single")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "accuracy │ 70.00% │ 36.00%" in text
    assert "multi-object gap" in text
    assert "+30.0" in text
    for options, message in (
        (("--setting", "x"), "unknown setting 'x'; choose from default, single"),
        (("--part", "x"), "unknown part 'x'; choose from validation, train"),
        (("--part", "train"), "has none of AAAAB_data.json"),
        (("--answers", alone), "2 --answers with --setting default; give each file its own setting"),
        (("--split", "mixed"), "has no validation/merged_mixed_data.json; it has the splits AAAAB"),
        (("--split", "x"), "unknown split 'x'; choose from AAAAB, BAAAA"),
    ):
        assert message in jobs.refused(*command, *options)
