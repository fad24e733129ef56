"""Questions about what is left of or above what in synthetic scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import permutations

from vlmfix.evaluation.datasets.annotations import BoxedImage, BoxedObject, read_boxes
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.language import with_article

from .questions import RelationQuestion, Thing

RELATIONS = {"left": ("to the left of", 0), "above": ("above", 1)}
"""Their words, and the axis along which the one box ends before the other begins: 0 across, 1 down."""


def scene_questions(folder: DataFolder, level: str) -> list[RelationQuestion]:
    """For each relation that a scene has, the question that is right with yes, and the one with no: the same
    with subject and object exchanged.

    Args:
        folder: of synthetic scenes.
        level: "image" or "instance".

    Raises:
        FileNotFoundError: the folder has no instances.
        ValueError: the file of instances is broken, or scenes have no questions of the level.
    """
    if level == "web":
        raise ValueError(
            "rbench_relation has no pictures from the web among synthetic scenes; choose --protocol "
            "rbench.tiny, or give R-Bench with --data"
        )
    instances = folder.require("instances", "rbench_relation")
    images = read_boxes(instances)
    folder.record("instances", instances, len(images))
    return [question for image in images for question in _questions(image, level)]


def _questions(image: BoxedImage, level: str) -> Iterator[RelationQuestion]:
    times = Counter(item.category for item in image.objects)
    single = [item for item in image.objects if times[item.category] == 1]
    for name, (relation, axis) in RELATIONS.items():
        pairs = permutations(single, 2)
        found = next(((one, other) for one, other in pairs if one.box[axis + 2] <= other.box[axis]), None)
        if found is None:
            continue
        for label, (subject, object) in (("yes", found), ("no", found[::-1])):
            yield RelationQuestion(
                id=f"{image.file_name}/{name}/{label}",
                image=image.file_name,
                text=_text(subject, relation, object, level),
                label="yes" if label == "yes" else "no",
                things=(_thing(subject, image), _thing(object, image)),
            )


def _text(subject: BoxedObject, relation: str, object: BoxedObject, level: str) -> str:
    if level == "instance":
        return f"Is the {subject.category} {relation} the {object.category}?"
    return (
        f"Is there {with_article(subject.category)} {relation} {with_article(object.category)} in the image?"
    )


def _thing(item: BoxedObject, image: BoxedImage) -> Thing:
    left, top, right, bottom = item.box
    width, height = image.size
    return Thing(item.category, (left / width, top / height, right / width, bottom / height))
