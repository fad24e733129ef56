"""Objects of annotated pictures, for `vlmfix explain`: judged in answers as CHAIR does, with their masks."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmfix.evaluation.datasets.annotations import read_instances
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.layouts import find_captions, picture_names
from vlmfix.evaluation.datasets.synthetic.rendering import paint
from vlmfix.evaluation.datasets.synthetic.scenes import Scene, demo_scene
from vlmfix.evaluation.files.readers import read_json
from vlmfix.explanation.objects import Mention, PictureObjects, read_masks

from .scorer import GroundTruth, judge
from .tokens import token_starts, tokenize
from .vocabulary import Vocabulary


def objects_of(picture: Path, instances: Path) -> PictureObjects:
    """What is in a picture, by the instances file that lists it by its name, and captions beside that.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or lists no such picture.
    """
    names = read_instances(instances).file_names
    ids = [number for number, name in names.items() if picture.name in picture_names(Path(name).name)]
    if not ids:
        raise ValueError(f"{instances} lists no picture {picture.name!r}; give the instances of this picture")
    captions = find_captions(instances.parent, instances)
    return _objects({ids[0]: picture}, instances, captions)[ids[0]]


def demo_objects() -> PictureObjects:
    """What is in the demo scene."""
    return objects_of_scene(demo_scene())


def objects_of_scene(scene: Scene) -> PictureObjects:
    """What is in a drawn scene, with masks of the pixels that show it."""
    vocabulary, there = Vocabulary(variant="corrected"), scene.categories()
    truth = GroundTruth(vocabulary, {0: frozenset(there)}, has_captions=False, is_counted=True)
    owners = paint(scene)[1]
    masks = {
        name: np.isin(owners, [place for place, each in enumerate(scene.objects) if each.category == name])
        for name in there
    }
    return PictureObjects(partial(_mentions, image_id=0, truth=truth), masks)


def objects_in(root: Path, limit: int) -> list[tuple[Path, PictureObjects]]:
    """The first pictures of a folder, with what is in them.

    Args:
        root: a COCO root, or the output of `vlmfix scenes`.
        limit: how many at most.

    Raises:
        FileNotFoundError: there is no such folder, or it has no instances, or no picture of them.
        ValueError: an annotation file is broken.
    """
    folder = DataFolder.find(root)
    names = folder.read_instances("explain").file_names
    assert folder.instances is not None
    paths = ((number, folder.image(name, "explain")) for number, name in names.items())
    chosen = dict(islice(((number, path) for number, path in paths if path.is_file()), limit))
    if not chosen:
        raise FileNotFoundError(f"{str(root)!r} has none of the pictures of {folder.instances}; add them")
    found = _objects(chosen, folder.instances, folder.captions)
    return [(path, found[number]) for number, path in chosen.items()]


def _objects(pictures: dict[int, Path], instances: Path, captions: Path | None) -> dict[int, PictureObjects]:
    vocabulary = Vocabulary(variant="corrected")
    truth = GroundTruth.from_files(
        [instances], [] if captions is None else [captions], vocabulary=vocabulary, image_ids=pictures
    )
    content = read_json(instances)
    categories = {
        each["id"]: vocabulary.class_of(each["name"]) or each["name"] for each in content["categories"]
    }
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in content["annotations"]:
        if each["image_id"] in pictures:
            annotations[each["image_id"]].append(each)
    found = {}
    for number, path in pictures.items():
        with Image.open(path) as opened:
            size = opened.size
        masks, crowds = read_masks(annotations[number], categories, size, instances)
        found[number] = PictureObjects(partial(_mentions, image_id=number, truth=truth), masks, crowds)
    return found


def _mentions(answer: str, *, image_id: int, truth: GroundTruth) -> list[Mention]:
    judged, starts, tokens = judge(answer, image_id, truth), token_starts(answer), tokenize(answer)
    wrong = {each.index for each in judged.hallucinated}
    found = []
    for each in judged.mentions:
        last = each.index + each.word.count(" ")  # two neighbours may be one word
        stop = starts[last] + len(tokens[last])
        found.append(Mention(each.category, starts[each.index], stop, each.index not in wrong))
    return found
