"""Questions of POPE as samples: from its files, built from instances, or from any data set of questions."""

from __future__ import annotations

import warnings
from pathlib import Path

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData, HubRow, hub_samples
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol
from vlmfix.evaluation.tasks.yes_no import yes_or_no

from .questions import PopeQuestion, asked_object, build_pope, read_pope, write_pope

PUBLISHED = ("coco", "aokvqa", "gqa")
OFFICIAL_ROWS = 3000
"""Data sets with question files of POPE, and the number of questions in each of these."""

BUILT_IMAGES = 500
BUILT_OBJECTS = 3
"""Of built POPE questions: images at most, and different objects that each of them has at least."""


def pope_samples(
    folder: DataFolder, protocol: Protocol, *, built: str | Path | None = None, seed: int = 0
) -> list[Sample]:
    """The yes/no questions of POPE, from its files or else built from the instances.

    Args:
        folder: with question files or instances.
        protocol: of the task pope.
        built: folder that receives built questions as files; None writes none.
        seed: of the builder.

    Returns:
        The samples in order of their ids, `pope/<data set>/<split>/<question id>`.

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
    return in_order(
        Sample(
            id=f"pope/{data_set}/{split}/{question.id}",
            cluster=question.image,
            image=folder.image(question.image, "pope"),
            prompt=protocol.ask(question.text),
            target=question.label,
            meta={"split": split, "object": question.object, "question": question.text},
        )
        for split, questions in splits.items()
        for question in questions
    )


def pope_rows(data: HubData, protocol: Protocol, cache: Path) -> list[Sample]:
    """The rows of a data set as questions of POPE, `pope/custom/<group>/<id>`; see `hub_samples`."""

    def sample(row: HubRow) -> Sample:
        split = row.group or "all"
        meta = {"split": split, "object": asked_object(row.question) or "", "question": row.question}
        label = yes_or_no(row.answer, row.where)
        id = f"pope/custom/{split}/{row.id}"
        return Sample(id, row.cluster, row.image, protocol.ask(row.question), label, meta)

    return hub_samples(data, sample, cache)


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
