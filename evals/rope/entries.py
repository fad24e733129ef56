"""ROPE's data files: pictures with five marked objects each (arXiv 2407.06192)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.readers import Record, field_of, read_records, shown, text_of

from .slots import SLOTS

PARTS = ("validation", "train")
SPLITS = {
    "AAAAB": "AAAAB_data.json",
    "BAAAA": "BAAAA_data.json",
    "heterogenous": "merged_heterogenous_data.json",  # spelt so
    "homogenous": "merged_homogenous_data.json",
    "mixed": "merged_mixed_data.json",
}
"""The splits of a part, and their files."""


@dataclass(frozen=True)
class Entry:
    """One picture with five objects in numbered red boxes.

    Args:
        picture: path below the root, as the file has it; for scenes, the file of the picture without boxes.
        source: "COCO" or "ADE", which have classes of their own.
        classes: of the objects 1 to 5.
    """

    picture: str
    source: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The picture without folder and ending, as files of answers call it."""
        return picture_name(self.picture)


def picture_name(path: str) -> str:
    """`"validation/COCO_1.jpg"` and `"COCO_1.png"` have the same."""
    name = path.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in ("jpg", "jpeg", "png") else name


def read_part(folder: DataFolder, part: str) -> dict[str, list[Entry]]:
    """The splits of a part that the folder has.

    Raises:
        FileNotFoundError: it has none.
        ValueError: a file is not what it should be, or has a picture twice.
    """
    root = folder.require("root", "rope")
    found = {}
    for split, file in SPLITS.items():
        path = root / part / file
        if path.is_file():
            found[split] = _read(path)
            folder.record(f"rope {part} {split}", path, len(found[split]))
    if not found:
        raise FileNotFoundError(
            f"{root} has none of {', '.join(SPLITS.values())} in {part}/, which rope needs; check --data"
        )
    return found


def classes_by_source(entries: Mapping[str, Sequence[Entry]]) -> dict[str, list[str]]:
    """All classes that occur in a part, in alphabetical order, by source."""
    found: dict[str, set[str]] = {}
    for split in entries.values():
        for entry in split:
            found.setdefault(entry.source, set()).update(entry.classes)
    return {source: sorted(names) for source, names in sorted(found.items())}


def _read(path: Path) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for record in read_records(path):
        entry = Entry(_filled(record, "folder"), _filled(record, "data_source"), _classes(record))
        if entry.name in entries:
            raise ValueError(
                f"{record.where}: the picture {entry.name} comes twice; names must be unique in a file, as "
                "answers are joined by them"
            )
        entries[entry.name] = entry
    return list(entries.values())


def _classes(record: Record) -> tuple[str, ...]:
    value = field_of(record, ("objects",), "objects")
    if isinstance(value, str):  # as a converted copy has them
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{record.where}: objects are a text that is no JSON; fix the file") from None
    objects = value if isinstance(value, list) else []
    found: dict[Any, str] = {}
    for each in objects:
        if isinstance(each, dict):
            found[each.get("bbox_number")] = _filled(Record(each, f"{record.where}, an object"), "name")
    if len(objects) != SLOTS or sorted(map(str, found)) != ["1", "2", "3", "4", "5"]:
        raise ValueError(
            f"{record.where}: objects are {shown(value)}; they must be five with the bbox_number 1 to 5"
        )
    return tuple(name for _, name in sorted(found.items(), key=lambda item: int(item[0])))


def _filled(record: Record, name: str) -> str:
    text = text_of(record, (name,), name)
    if not text or not text.strip():
        raise ValueError(f"{record.where}: {name} is {shown(text)}; it must be a text")
    return text
