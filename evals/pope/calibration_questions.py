"""Yes/no questions about the objects of a COCO folder, as a calibration takes them."""

from __future__ import annotations

from pathlib import Path

from vlmfix.calibration.sink_heads import YesNoQuestion
from vlmfix.evaluation.datasets.folder import find_training
from vlmfix.evaluation.tasks.protocol_files import default_protocol

from .questions import build_pope

_SPLIT = "adversarial"


def yes_no_questions(root: str | Path, limit: int, *, seed: int = 0) -> list[YesNoQuestion]:
    """Two questions about each of some pictures of a folder: one about an object that is there, and one about
    the object that most often comes with it and is not.

    Args:
        root: a COCO root, where training images are preferred, or the output of `vlmfix scenes`.
        limit: pictures at most.
        seed: of the draw.

    Raises:
        FileNotFoundError: there is no such folder, or it has no instances, or no picture of them.
        ValueError: the annotation file is broken, or a picture has all objects.
    """
    folder = find_training(root, "act")
    instances = folder.read_instances("act")
    paths = {name: folder.image(name, "act") for name in instances.file_names.values()}
    objects = {
        name: instances.objects[image]
        for image, name in instances.file_names.items()
        if instances.objects[image] and paths[name].is_file()
    }
    if not objects:
        raise FileNotFoundError(f"{str(root)!r} has none of the pictures of {folder.instances}; add them")
    built = build_pope(objects, images=min(limit, len(objects)), per_image=1, seed=seed, min_objects=1)
    protocol = default_protocol("pope", "synthetic" if folder.is_synthetic else "coco")
    return [
        YesNoQuestion(paths[each.image], protocol.ask(each.text), each.label == "yes")
        for each in built[_SPLIT]
    ]
