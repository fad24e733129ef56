"""HallusionBench on synthetic scenes: the same questions on a scene, and with one object more or fewer.

In every second set (category VS) they are asked without a picture, too; there nothing is to be seen, so that
"no" is right, and an answer without yes and no as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmfix.atomic import beside
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.editing import Edit, edited, scenes_of
from vlmfix.evaluation.datasets.synthetic.language import absent_categories, with_article
from vlmfix.evaluation.datasets.synthetic.rendering import render
from vlmfix.evaluation.datasets.synthetic.scenes import Scene
from vlmfix.evaluation.files.atomic import write_json

SETS = 100
"""Scenes at most that questions are built about."""


def build(folder: DataFolder, built: Path) -> Path:
    """Write questions about the first scenes of a folder in the form of the official file, and the edited
    scenes; what is there is left as it is.

    Args:
        folder: of synthetic scenes.
        built: folder that receives both.

    Returns:
        The file of the questions.

    Raises:
        ValueError: the scenes are of another version.
    """
    instances = folder.read_instances("hallusionbench")
    (built / "edited").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    scenes = scenes_of(folder.require("instances", "hallusionbench"))
    for number, (image_id, scene) in enumerate(list(scenes.items())[:SETS]):
        name = instances.file_names[image_id]
        edit = edited(scene, add=number // 2 % 2 == 0)
        _draw(edit.scene, built / "edited" / name)
        figures = [("1", name, scene), ("2", f"edited/{name}", edit.scene)]
        rows += _rows(str(image_id), figures, edit, is_vs=number % 2 == 1)
    path = built / "HallusionBench.json"
    write_json(path, rows)
    return path


def _rows(
    set_id: str, figures: list[tuple[str, str, Scene]], edit: Edit, *, is_vs: bool
) -> Iterator[dict[str, Any]]:
    """The items of one set."""
    shown: list[tuple[str, str | None, Scene | None]] = [*figures]
    if is_vs:
        shown.insert(0, ("0", None, None))
    for figure_id, (visual_input, filename, scene) in enumerate(shown):
        for question_id, name in enumerate(_asked(figures[0][2], edit)):
            is_there = scene is not None and name in scene.categories()
            yield {
                "category": "VS" if is_vs else "VD",
                "subcategory": "scene",
                "set_id": set_id,
                "figure_id": str(figure_id),
                "question_id": str(question_id),
                "visual_input": visual_input,
                "question": f"Is there {with_article(name)} in the image?",
                "gt_answer": str(int(is_there)),
                "filename": filename,
            }


def _asked(scene: Scene, edit: Edit) -> list[str]:
    """What the questions are about: the object of the edit, one that is there before and after it and is best
    seen, and one that is never there and goes with what is, if there is such a one."""
    stays = [each for each in edit.scene.objects if each.category in scene.categories()]
    best = max(stays, key=lambda each: each.visibility * each.opacity)
    partners, others = absent_categories(scene)
    never = next(name for name in [*partners, *others] if name != edit.category)
    return [edit.category, best.category, never]


def _draw(scene: Scene, path: Path) -> None:
    """Draw a picture unless it is there; beside other processes it appears as a whole."""
    if path.exists():
        return
    partial = beside(path)
    try:
        render(scene).save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
