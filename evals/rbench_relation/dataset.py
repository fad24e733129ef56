"""Questions of R-Bench as samples, with their pictures marked where the level asks for it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.marked_pictures import marked_picture
from vlmfix.evaluation.files.readers import examples, sha256_of
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol

from .marks import (
    BOX,
    BOX_COLORS,
    LINE_WIDTH,
    MASK,
    MASK_ALPHA,
    MASK_COLORS,
    marked_text,
    official_text,
    with_boxes,
    with_masks,
)
from .questions import RelationQuestion, read_questions
from .scenes import scene_questions

LEVELS = {"image": "", "instance-box": BOX, "instance-mask": MASK, "web": ""}
"""The levels of a protocol, and how a question calls the marks of its objects."""

MARKINGS = {"words": marked_text, "official": official_text}
"""Ways in which a question tells its marked objects."""


def relation_samples(folder: DataFolder, protocol: Protocol, built: Path | None) -> list[Sample]:
    """The questions of the level of a protocol, `rbench_relation/<level>/<question id>`.

    Questions whose words cannot tell the marked objects are left out, with a warning that counts them.

    Args:
        folder: with the files of R-Bench, or of synthetic scenes.
        protocol: of the task rbench_relation.
        built: folder that receives marked pictures; None marks nothing, neither in pictures nor in words, and
            leaves nothing out.

    Returns:
        The samples in order of their ids.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, or no question can tell its objects.
    """
    name = protocol.own["level"]
    level, mark = name.partition("-")[0], LEVELS[name]
    questions = (scene_questions if folder.is_synthetic else read_questions)(folder, level)
    if folder.is_synthetic and mark == MASK:
        raise ValueError(
            "rbench_relation has no masks of synthetic scenes; choose --protocol rbench.instance-box, "
            "or give R-Bench with --data"
        )
    samples, unmarked = [], []
    for question in questions:
        text: str | None = question.text
        image = _picture(folder, question.image)
        if question.things is not None and mark and built is not None:
            subject, object = (thing.name for thing in question.things)
            text = MARKINGS[protocol.own["marking"]](question.text, subject, object, mark)
            if text is not None:
                image = _marked(folder, question, image, mark, built)
        if text is None:
            unmarked.append(question.id)
            continue
        id = f"rbench_relation/{level}/{question.id}"
        meta: dict[str, Any] = {
            "question_id": question.id,
            "question": question.text,
            "kind": question.kind,
        }
        samples.append(Sample(id, question.image, image, protocol.ask(text), question.label, meta))
    if unmarked:
        told = (
            f"{len(unmarked)} of {len(questions)} questions do not name their two objects apart from each "
            f"other ({examples(unmarked)})"
        )
        if not samples:
            raise ValueError(
                f"{told}; choose --protocol {protocol.name}+marking=official, which marks them anyhow"
            )
        warnings.warn(
            f"{told} and are left out; --protocol {protocol.name}+marking=official keeps them", stacklevel=2
        )
    return in_order(samples)


def _picture(folder: DataFolder, name: str) -> Path:
    """Where a picture is, or the first place where it might be."""
    root = folder.require("root", "rbench_relation")
    places = (*folder.images, root / "images", root / "validation", root / "web_data", root)
    paths = [place / name for place in places]
    return next((path for path in paths if path.is_file()), paths[0])


def _marked(folder: DataFolder, question: RelationQuestion, image: Path, mark: str, built: Path) -> Path:
    """The picture with the marks of the question, or what of it is missing."""
    assert question.things is not None
    if mark == BOX:
        boxes = [thing.box for thing in question.things]
        drawn = {"boxes": boxes, "colors": BOX_COLORS, "width": LINE_WIDTH}
        return marked_picture(image, drawn, lambda picture: with_boxes(picture, boxes), built)
    path = folder.require("root", "rbench_relation") / "instance_mask" / f"{question.id}.png"
    if not path.is_file():
        return path
    drawn = {"mask": sha256_of(path), "colors": MASK_COLORS, "alpha": MASK_ALPHA}
    return marked_picture(image, drawn, lambda picture: with_masks(picture, _mask(path)), built)


def _mask(path: Path) -> Image.Image:
    try:
        with Image.open(path) as mask:
            mask.load()
    except UnidentifiedImageError:
        raise ValueError(
            f"{path} is no picture; a mask must be one, 1 at the subject and 2 at the object"
        ) from None
    if len(mask.getbands()) > 1:
        raise ValueError(f"{path} has {len(mask.getbands())} channels; a mask must have one")
    return mask
