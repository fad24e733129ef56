"""Files of answers scored with DASH-B's figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vlmfix.evals.dash_b import score_command
from vlmfix.evals.dash_b.lists import read_lists
from vlmfix.evals.dash_b.score_command import score_file

from tests.support import jobs
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Keys

OBJECTS = [f"thing {number}" for number in range(5)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Lists of five objects with ten pictures of each kind; files of different objects share names."""
    folder = tmp_path / "dash"
    folder.mkdir()
    neg = {"coco": {name: [f"{10 * place + n}.png" for n in range(10)] for place, name in enumerate(OBJECTS)}}
    pos = {"coco": {name: [f"{n:012}.jpg" for n in range(10)] for name in OBJECTS}}
    (folder / "dash_benchmark_neg.json").write_text(json.dumps(neg), encoding="utf-8")
    (folder / "dash_benchmark_pos.json").write_text(json.dumps(pos), encoding="utf-8")
    return folder


def rows(data: Path) -> list[dict[str, Any]]:
    """Answers in the form of DASH-B's code: yes to all of the first two objects, else right."""
    return [
        {
            "img_id": item.image.name,
            "object_name": item.object,
            "gt": item.label,
            "response": "Yes." if item.label == "yes" or item.object in OBJECTS[:2] else "No.",
            "answer": None,
        }
        for item in read_lists(DataFolder.find(data))
    ]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def scored(tmp_path: Path, data: Path, content: Any, **options: Any) -> dict[str, Any]:
    path = write(tmp_path / "answers.json", content)
    return dict(score_file(path, data, ["substring_yes"], Keys(), **options).document)


def test_figures_and_both_intervals(data: Path, tmp_path: Path) -> None:
    document = scored(tmp_path, data, rows(data))
    found = document["both_intervals"]["substring_yes"]
    values = {name: each["object"]["value"] for name, each in found.items()}
    assert (values["accuracy"], values["TNR"], values["TPR"]) == (0.8, 0.6, 1)
    assert values["harmonic mean"] == pytest.approx(0.75)
    assert (values["macro TNR"], values["objects with TNR 0"]) == (0.6, 0.4)
    for name in ("accuracy", "TNR", "harmonic mean"):
        widths = {way: each["high"] - each["low"] for way, each in found[name].items()}
        assert widths["object"] > 2 * widths["image"], name
    assert (found["accuracy"]["object"]["clusters"], found["accuracy"]["image"]["clusters"]) == (5, 100)
    assert "image" not in found["macro TNR"]
    assert document["tasks"][0]["clusters"] == "object"
    assert document["tnr_by_object"]["substring_yes"] == {name: float(name > "thing 1") for name in OBJECTS}
    assert document["notes"] == [
        "the lists are not the present ones of DASH-B: figures compare with no published ones"
    ]


def test_the_present_lists_need_no_note(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_command, "are_published", lambda folder: True)
    assert scored(tmp_path, data, rows(data))["notes"] == []


def test_ids_with_and_without_ending(data: Path, tmp_path: Path) -> None:
    plain = [{**row, "img_id": row["img_id"].partition(".")[0]} for row in rows(data)]
    expected = scored(tmp_path, data, rows(data))
    assert scored(tmp_path, data, plain)["both_intervals"] == expected["both_intervals"]
    numbers = [{**row, "img_id": int(row["img_id"])} if row["gt"] == "no" else row for row in plain]
    assert scored(tmp_path, data, numbers)["both_intervals"] == expected["both_intervals"]
    items = read_lists(DataFolder.find(data))
    own = [{"id": item.id, "answer": row["response"]} for item, row in zip(items, rows(data), strict=True)]
    assert scored(tmp_path, data, own)["both_intervals"] == expected["both_intervals"]


def test_answers_of_other_lists_are_refused(data: Path, tmp_path: Path) -> None:
    older = [
        {**row, "img_id": f"9{row['img_id']}"} if row["gt"] == "yes" and place % 5 else row
        for place, row in enumerate(rows(data))
    ]
    message = (
        r"40 of 100 answers are about pictures that the lists do not have, 0 of 50 with gt no, 40 of 50 with "
        r"gt yes \(yes/thing 0/9000000000001, .*; give the lists that these answers were made with"
    )
    for partial in (False, True):
        with pytest.raises(ValueError, match=message):
            scored(tmp_path, data, older, partial=partial)


def test_a_few_unknown_answers(data: Path, tmp_path: Path) -> None:
    given = rows(data)
    given[10]["gt"] = "yes"  # the lists say no
    with pytest.raises(
        ValueError, match=r"1 questions without an answer .*; 1 answers with an unknown picture"
    ):
        scored(tmp_path, data, given)
    notes = scored(tmp_path, data, given, partial=True)["notes"]
    assert [note.partition(" (")[0] for note in notes[:2]] == [
        "left out: 1 questions without an answer",
        "left out: 1 answers with an unknown picture",
    ]


@pytest.mark.parametrize("key", ["img_id", "object_name", "gt"])
def test_a_picture_needs_all_three(key: str, data: Path, tmp_path: Path) -> None:
    given = [{name: value for name, value in row.items() if name != key} for row in rows(data)]
    with pytest.raises(
        ValueError, match=f"record 1: no '{key}'; a picture is told by gt, object_name and img"
    ):
        scored(tmp_path, data, given)


def test_responses_by_question_id_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no 'gt' and no 'object_name' and no 'img_id'"):
        scored(tmp_path, data, {"1": "Yes", "2": "No"})


def test_files_that_differ_in_their_ending(data: Path, tmp_path: Path) -> None:
    content = {"coco": {"cup": ["1.png", "1.jpg"]}}
    for sign in ("neg", "pos"):
        write(data / f"dash_benchmark_{sign}.json", content)
    with pytest.raises(ValueError, match="differ only in ending or leading zeros"):
        scored(tmp_path, data, [{}])


def test_the_command(data: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "answers.json", rows(data))
    result = jobs.cli("score", "dash_b", "--answers", path, "--data", data, "--parser", "all")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "DASH-B by strict, percent (5 objects, 100 images)" in text
    assert "DASH-B by substring_yes" in text
    assert "harmonic mean" in text
    assert "unknown parser 'x'" in jobs.refused(
        "score", "dash_b", "--answers", path, "--data", data, "--parser", "x"
    )
    assert "has no images/dash_benchmark_neg.json" in jobs.refused(
        "score", "dash_b", "--answers", path, "--data", tmp_path
    )
