"""Images of which CHAIR asks captions, as samples."""

from __future__ import annotations

from collections.abc import Collection

from vlmfix.evaluation.datasets.annotations import read_captions
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.readers import examples, read_text
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol

from .image_list import image_list


def chair_samples(folder: DataFolder, protocol: Protocol) -> list[Sample]:
    """One caption of each image of the protocol's list.

    Args:
        folder: with instances and, for the scorer, captions and maybe synonyms, which are read here so that
            they do not break the scoring after a long run.
        protocol: of the task chair.

    Returns:
        The samples in order of their ids, `chair/<image id in twelve digits>`; targets are the categories of
        the instances, to which the scorer adds what the reference captions name.

    Raises:
        FileNotFoundError: instances, captions, the file of the list, or all pictures are missing.
        ValueError: broken files, or a list or captions that do not fit the instances.
    """
    instances = folder.read_instances("chair")
    chosen = image_list(folder, protocol, instances.file_names)
    _check_captions(folder, chosen)
    if folder.synonyms is not None:
        folder.record("synonyms", folder.synonyms, len(read_text(folder.synonyms).splitlines()))
    return in_order(
        Sample(
            id=f"chair/{image_id:012d}",
            cluster=str(image_id),
            image=folder.image(instances.file_names[image_id], "chair"),
            prompt=protocol.ask(protocol.prompt),
            target=sorted(instances.objects[image_id]),
            meta={"image_id": image_id},
        )
        for image_id in chosen
    )


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
