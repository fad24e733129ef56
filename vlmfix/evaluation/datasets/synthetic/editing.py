"""Scenes of a data folder sampled again, and the same scenes with one object more or one fewer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from vlmfix.evaluation.datasets.annotations import read_instances
from vlmfix.evaluation.datasets.synthetic.language import absent_categories
from vlmfix.evaluation.datasets.synthetic.scenes import (
    CATEGORIES,
    COLORS,
    Scene,
    SceneObject,
    Split,
    free_box,
    sample_scene,
    visible_share,
)
from vlmfix.evaluation.files.readers import read_json

_DESCRIPTION = re.compile(r"vlmfix synthetic scenes, seed (\d+), split (train|test)")

# An object that is fainter may be overlooked, so that its removal changes nothing.
_OPAQUE = 0.85


@dataclass(frozen=True)
class Edit:
    """A scene with one object more or one fewer.

    Args:
        scene: after the edit; all other objects are drawn as before.
        category: of the object, of which there is none without it.
        added: whether it was added, or removed.
    """

    scene: Scene
    category: str
    added: bool


def scenes_of(path: str | Path) -> dict[int, Scene]:
    """The scenes that an instances file of `vlmfix scenes` describes, by image id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of no synthetic scenes, or of another version's, which drew other ones.
    """
    instances = read_instances(path)
    content = read_json(path, drop=("segmentation",))
    found = _DESCRIPTION.fullmatch(str(content.get("info", {}).get("description", "")))
    if found is None:
        raise ValueError(f"{path} is of no synthetic scenes; make them with vlmfix scenes")
    seed, split = int(found[1]), cast(Split, found[2])
    scenes = {}
    for image in content["images"]:
        size = image["width"], image["height"]
        scene = sample_scene(seed, image["id"] - 1, split=split, size=size)
        if set(scene.categories()) != set(instances.objects[image["id"]]):
            raise ValueError(
                f"{path}: image {image['id']} has other objects than this version draws; make new scenes"
            )
        scenes[image["id"]] = scene
    return scenes


def edited(scene: Scene, *, add: bool) -> Edit:
    """A scene without its front object, or with a new object in front; the same for the same scene.

    The background and all other objects stay, as they are drawn before it; the noise of the pixels differs.
    What is added is the partner of a present object where one is missing.

    Args:
        scene: to edit.
        add: whether to add an object; one is added, too, where the front object is faint, is the only one, or
            is not the only one of its category.
    """
    front = scene.objects[-1]
    alone = len(scene.categories()[front.category]) == 1
    if not add and alone and front.opacity >= _OPAQUE and len(scene.objects) > 1:
        kept = _with_visibility(scene.objects[:-1])
        return Edit(dataclasses.replace(scene, objects=kept), front.category, added=False)
    rng = np.random.default_rng([scene.seed, scene.id, 5])
    partners, others = absent_categories(scene)
    name = str(rng.choice(partners or others))
    category = CATEGORIES[name]
    length = sum(category.sizes) / 2
    width, height = round(length * min(1.0, category.aspect)), round(length / max(1.0, category.aspect))
    boxes = [each.box for each in scene.objects]
    box = free_box(rng, boxes, width, height, scene.width, scene.height, 0.02)
    added = SceneObject(name, str(rng.choice(list(COLORS))), box, opacity=1.0, visibility=1.0)
    objects = _with_visibility((*scene.objects, added))
    return Edit(dataclasses.replace(scene, objects=objects), name, added=True)


def _with_visibility(objects: Sequence[SceneObject]) -> tuple[SceneObject, ...]:
    """Objects from back to front, and how much of each is seen among these."""
    boxes = [each.box for each in objects]
    return tuple(
        dataclasses.replace(each, visibility=visible_share(each.box, boxes[place + 1 :]))
        for place, each in enumerate(objects)
    )
