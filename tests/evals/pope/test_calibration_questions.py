"""Questions about annotated pictures, on which heads are tried."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from vlmfix.evals.pope.calibration_questions import yes_no_questions

from vlmfix.evaluation.files.readers import read_json


def test_two_questions_about_each_picture(world: Path) -> None:
    questions = yes_no_questions(world, 4)
    assert [each.is_yes for each in questions] == [True, False] * 4
    assert len({each.image for each in questions}) == 4
    listed = read_json(world / "instances.json")
    categories = {each["id"]: each["name"] for each in listed["categories"]}
    names = {each["id"]: each["file_name"] for each in listed["images"]}
    there: dict[str, set[str]] = {name: set() for name in names.values()}
    for each in listed["annotations"]:
        there[names[each["image_id"]]].add(categories[each["category_id"]])
    for question in questions:
        assert Path(str(question.image)).is_file()
        asked = question.text.removeprefix("Is there a ").removeprefix("Is there an ").split(" in the")[0]
        assert asked in categories.values()
        assert (asked in there[Path(str(question.image)).name]) is question.is_yes
    assert yes_no_questions(world, 4) == questions
    assert yes_no_questions(world, 4, seed=1) != questions


def test_pictures_that_are_not_there_are_left_out(world: Path, tmp_path: Path) -> None:
    shutil.copy(world / "instances.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no annotated pictures|has none of the pictures"):
        yes_no_questions(tmp_path, 4)
    (tmp_path / "images").mkdir()
    some = sorted((world / "images").iterdir())[:2]
    for path in some:
        shutil.copy(path, tmp_path / "images")
    assert {Path(str(each.image)).name for each in yes_no_questions(tmp_path, 4)} == {p.name for p in some}
