"""Scenes sampled again, with one object more or one fewer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.evaluation.datasets.synthetic.editing import edited, scenes_of

SCENES = [sample_scene(3, index) for index in range(60)]


def test_scenes_of_a_folder(world: Path) -> None:
    scenes = scenes_of(world / "instances.json")
    assert list(scenes) == [1, 2, 3, 4, 5, 6]
    assert scenes[2] == sample_scene(77, 1)


@pytest.mark.parametrize("add", [True, False])
def test_an_edit_changes_one_object(add: bool) -> None:
    added = 0
    for scene in SCENES:
        edit = edited(scene, add=add)
        assert edit == edited(scene, add=add)
        before, after = scene.categories(), edit.scene.categories()
        assert set(after) ^ set(before) == {edit.category}
        assert (edit.category in after) == edit.added
        assert len(edit.scene.objects) - len(scene.objects) == (1 if edit.added else -1)
        added += edit.added
    assert added == 60 if add else 10 < added < 30


def test_all_else_stays_in_its_place() -> None:
    for scene in SCENES[:10]:
        edit = edited(scene, add=True)
        x, y, width, height = edit.scene.objects[-1].box
        one, other = (np.asarray(render(each), dtype=int) for each in (scene, edit.scene))
        changed = np.abs(one - other).max(axis=-1) > 20  # more than the noise of the pixels
        assert changed[y : y + height, x : x + width].any()
        changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_how_much_is_seen_is_told_anew() -> None:
    pairs = [(scene, edited(scene, add=True).scene) for scene in SCENES]
    covered = [(scene, other) for scene, other in pairs if other.objects[:-1] != scene.objects]
    assert covered
    for scene, other in covered:
        before, after = (sum(each.visibility for each in one.objects) for one in (scene, other))
        assert after < before + 1  # the new object itself is seen whole


def test_other_scenes_are_refused(world: Path, tmp_path: Path) -> None:
    content = json.loads((world / "instances.json").read_text())
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content | {"info": {"description": "photos"}}))
    with pytest.raises(ValueError, match="is of no synthetic scenes; make them with vlmfix scenes"):
        scenes_of(path)
    path.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    with pytest.raises(ValueError, match="image 1 has other objects than this version draws"):
        scenes_of(path)
