"""Lists of the images that captions are made of: ids by name, never the order of a directory."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from pathlib import Path

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.hashing import digest
from vlmfix.evaluation.files.readers import (
    examples,
    read_json,
    read_text,
    shown,
)
from vlmfix.evaluation.tasks.protocols import Protocol

RULE = "vlmfix-500"
"""The list that is drawn from the image ids of the instances; any other is a file of ids."""

VAL2014_IMAGES = 40_504
USUAL_IMAGES = 500
"""Images of the usual lists, over which published figures are."""


def draw(image_ids: Collection[int], size: int) -> list[int]:
    """The list that a rule makes of all image ids: `random.Random(0).sample(sorted ids, size)`, sorted."""
    return sorted(random.Random(0).sample(sorted(image_ids), size))


def image_list(folder: DataFolder, protocol: Protocol, image_ids: Collection[int]) -> list[int]:
    """The ids of the images of a protocol, ascending; `folder.used` receives name, SHA-256 and sizes.

    Args:
        folder: with the file of ids if the protocol's list is not `RULE`.
        protocol: of the task chair.
        image_ids: all that the instances have.

    Raises:
        FileNotFoundError: the protocol needs a file of ids and none is given.
        ValueError: a file of ids is given to a protocol without one, has ids that are not among `image_ids`,
            or there are too few or too many of them.
    """
    subset, size = protocol.own["subset"], protocol.own["subset_size"]
    if subset in ("", RULE) and folder.ids is not None:
        images = "all images" if not subset else f"the list {RULE}, which is made by a rule"
        raise ValueError(
            f"{protocol.id} takes {images}, but data: ids gives {folder.ids}; set the protocol's subset to a "
            "name for that file's list, and subset_size to its length"
        )
    if not subset:
        return sorted(image_ids)
    if subset == RULE:
        if len(image_ids) < size:
            raise ValueError(
                f"{protocol.id} takes {size} images and the instances have {len(image_ids)}; "
                "set the protocol's subset_size to fewer"
            )
        chosen = draw(image_ids, size)
    else:
        chosen = _given(folder, protocol, image_ids)
    folder.used[f"list {subset}"] = {
        "sha256": digest(chosen),
        "rows": len(chosen),
        "of images": len(image_ids),
        "of all val2014": len(image_ids) == VAL2014_IMAGES,
    }
    return chosen


def read_ids(path: Path) -> list[int]:
    """Image ids, one a line or as a JSON list, ascending.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something is no id, or comes twice, or there are none.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        entries = [(f"{path}, entry {number}", value) for number, value in enumerate(read_json(path), 1)]
    else:
        lines = enumerate(text.splitlines(), 1)
        entries = [(f"{path}, line {number}", line.strip()) for number, line in lines if line.strip()]
    ids: set[int] = set()
    for where, value in entries:
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", str(value), re.ASCII):
            raise ValueError(f"{where}: {shown(value)} is no image id; write whole numbers")
        if int(value) in ids:
            raise ValueError(f"{where}: the image id {value} comes twice; ids must be unique")
        ids.add(int(value))
    if not ids:
        raise ValueError(f"{path} holds no image ids; write one a line or a JSON list")
    return sorted(ids)


def _given(folder: DataFolder, protocol: Protocol, image_ids: Collection[int]) -> list[int]:
    subset, size = protocol.own["subset"], protocol.own["subset_size"]
    if folder.ids is None:
        raise FileNotFoundError(
            f"{protocol.id} needs the image ids of the list {subset} ({protocol.mirrors}); give "
            "data: {ids: FILE}, one id a line or a JSON list"
        )
    chosen = read_ids(folder.ids)
    folder.record("ids", folder.ids, len(chosen))
    if size not in (0, len(chosen)):
        raise ValueError(
            f"{folder.ids} holds {len(chosen)} image ids, and the list {subset} of {protocol.id} "
            f"has {size}; give that list, or set the protocol's subset_size"
        )
    unknown = [each for each in chosen if each not in set(image_ids)]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(chosen)} image ids of {folder.ids} are not in {folder.instances} "
            f"({examples(unknown)}); give the instances of the same part of COCO"
        )
    return chosen
