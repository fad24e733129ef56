"""Pairs of questions about scenes: what they ask, and that their answers are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlmfix.evaluation.datasets import Scene, SceneObject, sample_scene, write_coco
from vlmfix.evaluation.datasets.coco import read_scenes
from vlmfix.evaluation.datasets.synthetic.language import NUMBER_WORDS
from vlmfix.evaluation.datasets.synthetic.scenes import CATEGORIES
from vlmfix.evaluation.datasets.synthetic.yes_no import paired_questions


def item(category: str, color: str = "red", x: int = 0) -> SceneObject:
    return SceneObject(category, color, (x, 0, 10, 10), 1.0, 1.0)


def test_a_scene() -> None:
    objects = [item("fork"), item("dog", "blue", 50), item("cup", x=20), item("cup", x=30)]
    texts = [(each.kind, each.text, each.answer, each.object) for each in paired_questions(objects, 0)]
    assert texts == [
        ("existence", "Is there a fork in the image?", "yes", "fork"),
        ("existence", "Is there a knife in the image?", "no", "knife"),
        ("count", "Are there two cups in the image?", "yes", "cup"),
        ("count", "Is there only one cup in the image?", "no", "cup"),
        ("position", "Is the fork to the left of the dog in the image?", "yes", "fork"),
        ("position", "Is the fork to the right of the dog in the image?", "no", "fork"),
        ("color", "Is there a red fork in the image?", "yes", "fork"),
        ("color", "Is there an orange fork in the image?", "no", "fork"),
    ]


def test_nothing_to_ask_about_position_or_color() -> None:
    twins = paired_questions([item("cup"), item("cup", x=30)], 1)
    assert {each.kind for each in twins} == {"existence", "count"}
    overlapping = paired_questions([item("cup"), item("dog", x=5)], 1)
    assert {each.kind for each in overlapping} == {"existence", "count", "color"}


def right(scene: Scene, text: str) -> bool:
    """The answer by reading the question."""
    groups = scene.categories()
    if found := re.fullmatch(r"Is the (.+) to the (left|right) of the (.+) in the image\?", text):
        [one], [other] = groups[found[1]], groups[found[3]]
        return (one.box[0] < other.box[0]) == (found[2] == "left")
    if found := re.fullmatch(r"Is there only one (.+) in the image\?", text):
        return len(groups[found[1]]) == 1
    if found := re.fullmatch(r"Are there (\w+) (.+) in the image\?", text):
        name = next(each.name for each in CATEGORIES.values() if each.plural == found[2])
        return len(groups[name]) == NUMBER_WORDS.index(found[1])
    found = re.fullmatch(r"Is there an? (.+) in the image\?", text)
    assert found, text
    if found[1] in CATEGORIES:
        return found[1] in groups
    color, _, name = found[1].partition(" ")
    return any(each.color == color for each in groups[name])


def test_the_answers_are_right() -> None:
    kinds = set()
    for index in range(60):
        scene = sample_scene(3, index)
        asked = paired_questions(scene.objects, index)
        assert [each.answer for each in asked] == ["yes", "no"] * (len(asked) // 2)
        for each in asked:
            assert right(scene, each.text) == (each.answer == "yes"), each
        kinds |= {each.kind for each in asked}
    assert kinds == {"existence", "count", "position", "color"}


def test_scenes_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = write_coco(tmp_path, count=3, seed=4)
    found = read_scenes(folder / "instances.json")
    assert list(found) == [f"{number:012}.png" for number in (1, 2, 3)]
    assert list(found.values()) == [sample_scene(4, index).objects for index in range(3)]


@pytest.mark.parametrize("text", ["[]", "{}", '{"categories": [], "images": [], "annotations": [{}]}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not as 'vlmfix scenes' writes it"):
        read_scenes(path)
