"""Questions of HallusionBench as samples: from its file, or about scenes and the same scenes edited."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.readers import read_records
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol

from .figures import unit_sizes
from .items import ITEMS, Item, read_items

FILES = ("HallusionBench.json", "**/HallusionBench.json")
"""Where its file may lie below a folder."""

# The published pictures are in an archive of their own.
_PICTURES = ("", "hallusion_bench")


def file_samples(folder: DataFolder, path: Path, protocol: Protocol) -> list[Sample]:
    """The items of a file as samples, `hallusionbench/<category>/<subcategory>/<set>/<figure>/<question>`.

    Args:
        folder: in which the file is noted, and that has the pictures where none lie beside the file.
        path: of the file.
        protocol: of the task hallusionbench.

    Raises:
        ValueError: the file is broken.
    """
    items = read_items(read_records(path))
    folder.record("hallusionbench", path, len(items))
    if len(items) != ITEMS and not folder.is_synthetic:
        warnings.warn(f"{path}: {other_number(len(items))}", stacklevel=3)
    places = [path.parent / name for name in _PICTURES] + list(folder.images)

    def picture(name: str) -> Path:
        paths = [place / name for place in places]
        return next((each for each in paths if each.is_file()), paths[0])

    return item_samples(items, protocol, picture)


def item_samples(
    items: Sequence[Item],
    protocol: Protocol,
    picture: Callable[[str], Path] | None = None,
    judged: Mapping[str, str] | None = None,
) -> list[Sample]:
    """The items that the rule of the protocol takes, as samples in the order of their ids.

    Args:
        items: from `read_items`.
        protocol: of the task hallusionbench.
        picture: the file of a picture by its name; None: nobody is asked about them.
        judged: what a judge says of the answers to them, by the name of the item.
    """
    kept = [item for item in items if protocol.own["rule"] == "parse_all" or item.has_image]
    metas: list[dict[str, Any]] = [
        {
            "category": item.category,
            "subcategory": item.subcategory,
            "set_id": item.set_id,
            "figure_id": item.figure_id,
            "question_id": item.question_id,
            "visual_input": item.visual_input,
            "question": item.question,
        }
        for item in kept
    ]
    for item, meta, units in zip(kept, metas, unit_sizes(metas), strict=True):
        meta["units"] = units
        if judged and item.name in judged:
            meta["judge"] = judged[item.name]
    return in_order(
        Sample(
            id=f"hallusionbench/{item.name}",
            cluster=item.set,
            image=None if picture is None or item.filename is None else picture(item.filename),
            prompt=protocol.ask(item.question),
            target=item.target,
            meta=meta,
        )
        for item, meta in zip(kept, metas, strict=True)
    )


def other_number(count: int) -> str:
    """What is to be said of a file with another number of items than the published one."""
    return (
        f"{count:,} items, and HallusionBench's file has {ITEMS:,}; numbers from the two are not comparable"
    )
