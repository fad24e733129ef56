"""Files of AMBER (arXiv 2311.07397), which two benchmarks read: queries, annotations and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.files.answers import Keys, read_answers, texts_of
from vlmfix.evaluation.files.readers import Record, examples, id_of, read_records, text_of
from vlmfix.evaluation.sample import Sample

Part = Literal["discriminative", "generative"]

_ANNOTATIONS = "**/annotations.json"
_QUERIES = ("**/query_{part}.json", "**/query_all.json")
_ID = ("id",)
_PICTURES = ("image", "images", "")


@dataclass(frozen=True)
class Item:
    """One query with its annotation.

    Args:
        id: as in both files.
        image: name of the picture.
        query: what is asked, without suffix.
        type: of the annotation, such as "generative" or "discriminative-relation".
        annotation: all of it, with what is right under "truth".
    """

    id: int | str
    image: str
    query: str
    type: str
    annotation: Record


def read_amber(folder: DataFolder, task: str, part: Part) -> list[Item]:
    """The queries of a part with their annotations, in the order of the queries.

    Args:
        folder: with `query_all.json`, or the file of the part, and `annotations.json` at any depth.
        task: that reads it.
        part: of the benchmark.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken, an id comes twice, or queries have no annotation.
    """
    asked = folder.find_file(task, *(pattern.format(part=part) for pattern in _QUERIES))
    known = folder.find_file(task, _ANNOTATIONS)
    annotations = _by_id(known, _ID)
    queries = _by_id(asked, _ID)
    lacking = [id for id in queries if id not in annotations]
    if lacking:
        raise ValueError(
            f"{known} has no annotation of {len(lacking)} queries of {asked} ({examples(lacking)}); give "
            "both files of the same release"
        )
    items = []
    for id, query in queries.items():
        annotation = annotations[id]
        kind = _text(annotation, "type")
        if (kind == "generative") == (part == "generative"):  # all other types are discriminative
            items.append(Item(id, _text(query, "image"), _text(query, "query"), kind, annotation))
    if not items:
        raise ValueError(f"{asked} has no queries of the {part} part; give the file of this part, or of all")
    folder.record("queries", asked, len(items))
    folder.record("annotations", known, len(annotations))
    return items


def picture(folder: DataFolder, name: str) -> Path:
    """The file of a picture, in `image/`, in `images/` or in the root; it need not exist."""
    assert folder.root is not None  # the queries were found below it
    paths = [folder.root / place / name for place in _PICTURES]
    return next((path for path in paths if path.is_file()), paths[0])


def read_texts(
    path: Path, keys: Keys, samples: Sequence[Sample], folder: DataFolder, *, partial: bool
) -> tuple[list[str | None], list[str]]:
    """The answers of a file to the samples of a part; one file may hold the answers to both parts.

    Args:
        path: of the answers.
        keys: of its records.
        samples: with the id of the query in `meta["id"]`.
        folder: from which they come.
        partial: see `texts_of`.

    Returns:
        The text for each sample, None for none; and sentences with what was left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what it should be, or as for `texts_of`.
    """
    answers = read_answers(path, keys)
    wanted = [sample.meta["id"] for sample in samples]
    own = set(wanted)
    others: set[int | str] = set()
    if not folder.is_synthetic and any(answer.id not in own for answer in answers):
        others = set(_by_id(folder.find_file("amber", _ANNOTATIONS), _ID)) - own
    kept = [answer for answer in answers if answer.id not in others]
    texts, notes = texts_of(kept, wanted, lambda answer: answer.id, partial=partial)
    if left := len(answers) - len(kept):
        notes.append(f"{left} answers to queries of the other part of AMBER, left out")
    found = [texts[id] for id in wanted]
    if missing := found.count(None):
        notes.append(f"answered: {1 - missing / len(found):.1%} of {len(found)} queries")
    return found, notes


def _by_id(path: Path, keys: Sequence[str]) -> dict[int | str, Record]:
    found: dict[int | str, Record] = {}
    for record in read_records(path):
        id = id_of(record, keys)
        if id in found:
            raise ValueError(f"{record.where}: the id {id} comes twice; ids must be unique")
        found[id] = record
    return found


def _text(record: Record, key: str) -> str:
    text = text_of(record, (key,), key)
    if not text or not text.strip():
        raise ValueError(f"{record.where}: the {key} is empty; it must be a text")
    return text
