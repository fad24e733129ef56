"""Questions of AMBER's discriminative part as samples: from its files, or about synthetic scenes."""

from __future__ import annotations

from collections.abc import Iterator

from vlmfix.evaluation.datasets.amber import Item, picture, read_amber
from vlmfix.evaluation.datasets.coco import read_scenes
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.yes_no import paired_questions
from vlmfix.evaluation.files.readers import field_of
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.evaluation.tasks.yes_no import yes_or_no

GROUPS = ("existence", "attribute", "state", "number", "action", "relation")
"""In which questions are reported; attribute is state, number and action together."""

_TYPES: dict[str, tuple[str, ...]] = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
"""The groups of each type of an annotation."""

_OF_SCENES: dict[str, tuple[str, ...]] = {
    "existence": ("existence",),
    "color": ("attribute", "state"),
    "count": ("attribute", "number"),
    "position": ("relation",),
}
"""The groups of each kind of question about a scene."""


def amber_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """The yes/no questions of AMBER.

    Args:
        folder: with its files, see `read_amber`, or synthetic scenes.
        protocol: of the task amber.

    Returns:
        The samples in order of their ids, `amber/<id in five digits>`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, a type is unknown, or what is right is neither yes nor no.
    """
    if folder.is_synthetic:
        return in_order(_scene_samples(folder, protocol))
    items = read_amber(folder, "amber", "discriminative")
    return in_order(_sample(item, folder, protocol) for item in items)


def _sample(item: Item, folder: DataFolder, protocol: Protocol) -> Sample:
    if item.type not in _TYPES:
        raise ValueError(
            f"{item.annotation.where}: the type is {item.type!r}; it must be generative or one of "
            f"{', '.join(_TYPES)}"
        )
    return Sample(
        id=f"amber/{item.id:05}" if isinstance(item.id, int) else f"amber/{item.id}",
        cluster=item.image,
        image=picture(folder, item.image),
        prompt=protocol.ask(item.query),
        target=yes_or_no(field_of(item.annotation, ("truth",), "truth"), item.annotation.where),
        meta={"id": item.id, "groups": list(_TYPES[item.type]), "question": item.query},
    )


def _scene_samples(folder: DataFolder, protocol: Protocol) -> Iterator[Sample]:
    """Questions about synthetic scenes, whose existence ones are all answered no, as AMBER's are."""
    folder.read_instances("amber")
    scenes = read_scenes(folder.require("instances", "amber"))
    for turn, (name, objects) in enumerate(scenes.items()):
        for question in paired_questions(objects, turn):
            if question.kind == "existence" and question.answer == "yes":
                continue
            id = f"{question.kind}/{name}/{question.answer}"
            yield Sample(
                id=f"amber/{id}",
                cluster=name,
                image=folder.image(name, "amber"),
                prompt=protocol.ask(question.text),
                target=question.answer,
                meta={
                    "id": id,
                    "groups": list(_OF_SCENES[question.kind]),
                    "question": question.text,
                    "object": question.object,
                },
            )
