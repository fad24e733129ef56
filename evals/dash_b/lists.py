"""The two lists of DASH-B: which pictures are without an object, and which show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.readers import examples, read_json, sha256_of, shown
from vlmfix.evaluation.tasks.yes_no_parsers import Verdict

PUBLISHED = {"neg": "29d9afa611083f3b", "pos": "fe261c2b9463e270"}
"""How the SHA-256 of the present lists begin; some published figures are of an older list of positives."""

LABELS: dict[str, Verdict] = {"neg": "no", "pos": "yes"}


@dataclass(frozen=True)
class Item:
    """One picture, and the object that is asked about.

    Args:
        id: `dash_b/<neg or pos>/<source>/<object>/<file>`; a file name alone is of several pictures.
        source: the data set that the object was taken from.
        object: as the list spells it.
        label: whether the picture shows it.
        image: file of the picture.
    """

    id: str
    source: str
    object: str
    label: Verdict
    image: Path


def read_lists(folder: DataFolder) -> list[Item]:
    """The pictures of both lists, which lie beside them in `neg/` and `pos/`.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: a list is not what it should be, or has a picture twice, or an object is in one list only
            or under two sources.
    """
    items = {sign: list(_read(folder, sign)) for sign in LABELS}
    for sign, other in (("neg", "pos"), ("pos", "neg")):
        there = {(item.source, item.object) for item in items[other]}
        alone = sorted({(item.source, item.object) for item in items[sign]} - there)
        if alone:
            names = examples("/".join(each) for each in alone)
            raise ValueError(
                f"{_path(folder, sign)}: the other list lacks {len(alone)} of its objects ({names}); give "
                "both lists of one version"
            )
    found = [item for each in items.values() for item in each]
    sources: dict[str, str] = {}
    for item in found:
        if sources.setdefault(item.object, item.source) != item.source:
            raise ValueError(
                f"{item.object!r} is listed under {sources[item.object]} and {item.source}; an object must "
                "have one source, as answers do not tell it"
            )
    return found


def are_published(folder: DataFolder) -> bool:
    """Whether the lists are the present ones of DASH-B, to which published figures belong."""
    return all(sha256_of(_path(folder, sign)).startswith(start) for sign, start in PUBLISHED.items())


def _path(folder: DataFolder, sign: str) -> Path:
    name = f"dash_benchmark_{sign}.json"
    return folder.find_file("dash_b", f"images/{name}", name)


def _read(folder: DataFolder, sign: str) -> Iterator[Item]:
    path = _path(folder, sign)
    content = read_json(path)
    seen: set[str] = set()
    for source, objects in _fields(path, content, "the list", "objects by source"):
        for name, files in _fields(path, objects, source, "file names by object"):
            if not isinstance(files, list) or not all(isinstance(file, str) and file for file in files):
                raise ValueError(
                    f"{path}: {source}/{name} is {shown(files)}; it must be a list of file names"
                )
            for file in files:
                id = f"dash_b/{sign}/{source}/{name}/{file}"
                if id in seen:
                    raise ValueError(f"{path}: {source}/{name} has {file} twice; fix the list")
                seen.add(id)
                yield Item(id, source, name, LABELS[sign], path.parent / sign / source / name / file)
    folder.record(f"dash_b {sign}", path, len(seen))


def _fields(path: Path, value: Any, what: str, wanted: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: {what} is {shown(value)}; it must be an object with {wanted}")
    return list(value.items())
