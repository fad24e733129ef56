"""Items of every task from a data folder, and the choice of some of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from vlmfix.evals.pope.questions import (
    PopeQuestion,
    build_pope,
    read_pope,
    write_pope,
)
from vlmfix.evals.vqa.questions import join_answers, read_by_id
from vlmfix.evaluation.datasets.annotations import read_captions
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.layouts import PARTS, is_official
from vlmfix.evaluation.datasets.lists import image_list
from vlmfix.evaluation.files.readers import examples, read_text
from vlmfix.evaluation.tasks.base import Item
from vlmfix.evaluation.tasks.protocols import Protocol

PUBLISHED = ("coco", "aokvqa", "gqa")
OFFICIAL_ROWS = 3000
"""Data sets with question files of POPE, and the number of questions in each of these."""

BUILT_IMAGES = 500
BUILT_OBJECTS = 3
"""Of built POPE questions: images at most, and different objects that each of them has at least."""


def pope_items(
    folder: DataFolder, protocol: Protocol, *, built: str | Path | None = None, seed: int = 0
) -> list[Item]:
    """The yes/no questions of POPE, from its files or else built from the instances.

    Args:
        folder: with question files or instances.
        protocol: of the task pope.
        built: folder that receives built questions as files; None writes none.
        seed: of the builder.

    Returns:
        The items in order of their ids, `pope/<data set>/<split>/<question id>`.

    Raises:
        FileNotFoundError: a file, or all pictures, are missing.
        ValueError: broken files, data of another data set, or no image with enough objects.
    """
    data_set = folder.data_set("pope", protocol.data_set)
    files = folder.question_files(data_set)
    splits = {split: _read(path, data_set) for split, path in files.items()}
    if not splits:
        splits = _built(folder, seed)
        if built is not None:
            files = dict(zip(splits, write_pope(splits, built, data_set), strict=True))
    for split, path in files.items():
        folder.record(f"pope {data_set} {split}", path, len(splits[split]))
    return _in_order(
        Item(
            id=f"pope/{data_set}/{split}/{question.id}",
            cluster=question.image,
            image=folder.image(question.image, "pope"),
            prompt=protocol.ask(question.text),
            gold=question.label,
            meta={"split": split, "object": question.object, "question": question.text},
        )
        for split, questions in splits.items()
        for question in questions
    )


def chair_items(folder: DataFolder, protocol: Protocol) -> list[Item]:
    """One caption of each image of the protocol's list.

    Args:
        folder: with instances and, for the scorer, captions and maybe synonyms, which are read here so that
            they do not break the scoring after a long run.
        protocol: of the task chair.

    Returns:
        The items in order of their ids, `chair/<image id in twelve digits>`; gold are the categories of the
        instances, to which the scorer adds what the reference captions name.

    Raises:
        FileNotFoundError: instances, captions, the file of the list, or all pictures are missing.
        ValueError: broken files, or a list or captions that do not fit the instances.
    """
    instances = folder.read_instances("chair")
    chosen = image_list(folder, protocol, instances.file_names)
    _check_captions(folder, chosen)
    if folder.synonyms is not None:
        folder.record("synonyms", folder.synonyms, len(read_text(folder.synonyms).splitlines()))
    return _in_order(
        Item(
            id=f"chair/{image_id:012d}",
            cluster=str(image_id),
            image=folder.image(instances.file_names[image_id], "chair"),
            prompt=protocol.ask(protocol.prompt),
            gold=sorted(instances.objects[image_id]),
            meta={"image_id": image_id},
        )
        for image_id in chosen
    )


def vqa_items(folder: DataFolder, protocol: Protocol) -> list[Item]:
    """Open questions in the form of VQA v2 with the answers of several people.

    Args:
        folder: with questions and answers, and with instances unless the questions are those of VQA v2.
        protocol: of the task vqa.

    Returns:
        The items in order of their ids, `vqa/<question id>`; gold are the answers.

    Raises:
        FileNotFoundError: a file, or all pictures, are missing.
        ValueError: broken files, an id that comes twice, or a question without answers or image.
    """
    asked, answered = folder.require("questions", "vqa"), folder.require("answers", "vqa")
    questions, answers = read_by_id(asked, "questions"), read_by_id(answered, "annotations")
    folder.record("questions", asked, len(questions))
    folder.record("answers", answered, len(answers))
    file_name = _file_names(folder, asked)
    return _in_order(
        Item(
            id=f"vqa/{question.id}",
            cluster=str(question.image_id),
            image=folder.image(file_name(question.image_id), "vqa"),
            prompt=protocol.ask(question.text),
            gold=list(question.answers),
            meta={
                "image_id": question.image_id,
                "question": question.text,
                "question_type": question.question_type,
                "answer_type": question.answer_type,
            },
        )
        for question in join_answers(questions, answers)
    )


def limited(items: Sequence[Item], limit: int | float) -> list[Item]:
    """A stable subset: the first items in the order of the SHA-256 of their ids, in their own order again.

    Args:
        items: with different ids.
        limit: how many, or as a float in (0, 1] which share; more than there are means all.

    Raises:
        ValueError: `limit` is neither.
    """
    share = isinstance(limit, float)
    if isinstance(limit, bool) or not (0 < limit <= 1 if share else limit >= 1):
        raise ValueError(
            f"limit must be a count of at least 1 or a share in (0, 1] such as 0.1, got {limit!r}"
        )
    count = max(1, round(limit * len(items))) if share else int(limit)
    first = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())[:count]
    chosen = {item.id for item in first}
    return [item for item in items if item.id in chosen]


def shard(key: str, n: int) -> int:
    """Which of `n` shards a key belongs to; contiguous pieces would balance badly."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % n


def _read(path: Path, data_set: str) -> list[PopeQuestion]:
    questions = read_pope(path)
    if data_set in PUBLISHED and len(questions) != OFFICIAL_ROWS:
        warnings.warn(
            f"{path} has {len(questions)} questions and POPE's present file {OFFICIAL_ROWS}; numbers from "
            "the two are not comparable",
            stacklevel=3,
        )
    return questions


def _built(folder: DataFolder, seed: int) -> dict[str, list[PopeQuestion]]:
    """Questions built from the instances, of as many images as are good for it."""
    if folder.instances is None:
        folder.require("pope", "pope")
    instances = folder.read_instances("pope")
    objects = {instances.file_names[image]: names for image, names in instances.objects.items()}
    good = sum(len(names) >= BUILT_OBJECTS for names in objects.values())
    images = max(1, min(BUILT_IMAGES, good))
    folder.used["pope builder"] = {"seed": seed, "images": images, "of images": len(objects)}
    return build_pope(objects, images=images, seed=seed, min_objects=BUILT_OBJECTS)


def _check_captions(folder: DataFolder, image_ids: Collection[int]) -> None:
    path = folder.require("captions", "chair")
    captions = read_captions(path)
    folder.record("captions", path, sum(map(len, captions.values())))
    without = [image_id for image_id in image_ids if image_id not in captions]
    if without:
        raise ValueError(
            f"{path} has no captions of {len(without)} of {len(image_ids)} images ({examples(without)}); "
            "give the captions of the same part of COCO"
        )


def _file_names(folder: DataFolder, questions: Path) -> Callable[[int], str]:
    """How the picture of an image id is called."""
    if is_official(questions):
        part = next(part for part in PARTS if part in questions.name)
        return lambda image_id: f"COCO_{part}_{image_id:012d}.jpg"
    instances = folder.read_instances("vqa")

    def of_instances(image_id: int) -> str:
        if image_id not in instances.file_names:
            raise ValueError(
                f"{questions} asks about image {image_id}, which {folder.instances} does not list; give the "
                "instances of the same images"
            )
        return instances.file_names[image_id]

    return of_instances


def _in_order(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.id)
