"""Samples from any data set of the library `datasets`: on the hub, saved to disk, or in plain files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmfix.evaluation.files.hashing import digest
from vlmfix.evaluation.files.readers import shown
from vlmfix.evaluation.sample import Sample, content_hash, in_order
from vlmfix.settings import user_path

if TYPE_CHECKING:
    import datasets

NEEDED = ("image", "question", "answer")
OPTIONAL = ("id", "group")

# Columns of public data sets by role; of several, the first that is there.
_USUAL = {
    "image": ("image",),
    "question": ("question",),
    "answer": ("answers", "answer"),
    "id": ("question_id", "id"),
    "group": ("category", "question_type"),
}
_SAVED = ("state.json", "dataset_dict.json")
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass
class HubData:
    """A data set by name, and which of its columns mean what.

    Args:
        name: id on the hub; or a folder written by `save_to_disk`, a folder of pictures or data files that
            `load_dataset` understands, or a file of type json, jsonl, parquet or csv.
        split: such as "test"; a plain file is all of it.
        columns: column names by role. `image`: pictures, or paths (relative ones beside the data);
            `question`; `answer`: yes or no, or the answers of people; `id`: unique within its group, by
            default the number of the row; `group`: the split of POPE or type of question to report by. None:
            those called as in lmms-lab/POPE and lmms-lab/VQAv2, which are known when it is loaded.
        config: configuration of the data set, if it has several.
        used: what was read: name, rows, SHA-256 over the contents of the samples.
    """

    name: str
    split: str
    columns: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    used: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.columns:
            return
        unknown = [role for role in self.columns if role not in (*NEEDED, *OPTIONAL)]
        missing = [role for role in NEEDED if role not in self.columns]
        if unknown or missing:
            problem = f"do not know {', '.join(unknown)}" if unknown else f"lack {', '.join(missing)}"
            raise ValueError(
                f"the columns of {self.name} {problem}; name the columns for {', '.join(NEEDED)} and, if "
                f"there are any, for {', '.join(OPTIONAL)}"
            )
        for role, column in self.columns.items():
            if not isinstance(column, str):
                raise ValueError(f"the column {role} of {self.name} is {column!r}; it must be a name")


@dataclass(frozen=True)
class HubRow:
    """One row of a data set.

    Args:
        where: data set, split and number of the row, for messages.
        id: of the column, or the number of the row.
        image: file of the picture.
        cluster: the picture by its content or path.
        question: without suffix.
        answer: whatever the column has.
        group: of the column; "" without one.
    """

    where: str
    id: int | str
    image: Path
    cluster: str
    question: str
    answer: Any
    group: str


def hub_samples(data: HubData, make: Callable[[HubRow], Sample], cache: str | Path) -> list[Sample]:
    """The rows of a data set as samples; pictures that it contains become files.

    Args:
        data: the data set.
        make: the sample of a row.
        cache: folder that receives pictures, each once and under the SHA-256 of its bytes.

    Returns:
        The samples in order of their ids.

    Raises:
        FileNotFoundError, ConnectionError: there is no such data set, or it cannot be reached.
        ValueError: it has no such split or column, a row has no image, question or valid answer, or an id
            comes twice.
    """
    samples: dict[str, Sample] = {}
    for number, row in enumerate(_rows(data), 1):
        where = f"{data.name}, split {data.split}, row {number}"
        sample = make(_row(row, number, where, data, Path(cache)))
        if sample.id in samples:
            raise ValueError(
                f"{where}: the id of {sample.id} comes twice; ids must be unique in their group, so name "
                "another column for them"
            )
        samples[sample.id] = sample
    ordered = in_order(samples.values())
    data.used["data set"] = {
        "name": data.name,
        "config": data.config,
        "split": data.split,
        "rows": len(ordered),
        "sha256": digest([[content_hash(sample), sample.cluster] for sample in ordered]),
    }
    return ordered


def _row(row: Mapping[str, Any], number: int, where: str, data: HubData, cache: Path) -> HubRow:
    value = {role: row[column] for role, column in data.columns.items()}
    question, id = value["question"], value.get("id", number)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: the question is {shown(question)}; it must be a text")
    if not isinstance(id, int | str) or isinstance(id, bool):
        raise ValueError(f"{where}: the id is {shown(id)}; it must be a whole number or a text")
    image, cluster = _image(value["image"], where, data, cache)
    group = "" if value.get("group") is None else str(value["group"])
    return HubRow(where, id, image, cluster, question, value["answer"], group)


def _rows(data: HubData) -> datasets.Dataset:
    """The named columns, pictures as they are stored."""
    import datasets  # takes a second

    try:
        loaded = _load(data)
    except Exception as error:  # of many kinds, for data that only the user can fix
        kinds = (FileNotFoundError, ConnectionError, OSError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), ValueError)
        reason = " ".join(str(error).split())
        raise kind(f"cannot load the data set {data.name}, split {data.split}: {reason}") from error
    there = loaded.column_names
    data.columns = data.columns or _recognised(data.name, there)
    missing = [column for column in data.columns.values() if column not in there]
    if missing:
        raise ValueError(
            f"{data.name} has no column {', '.join(missing)}; its columns are {', '.join(there)}"
        )
    image = data.columns["image"]
    if isinstance(loaded.features[image], datasets.Image):
        loaded = loaded.cast_column(image, datasets.Image(decode=False))
    return loaded.select_columns(sorted(set(data.columns.values())))


def is_data_set(path: Path) -> bool:
    """Whether a file or folder holds a data set with pictures: Parquet, or what `save_to_disk` writes."""
    if path.is_file():
        return path.suffix == ".parquet"
    return any((path / name).is_file() for name in _SAVED) or any(
        next(path.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")
    )


def _recognised(name: str, there: Sequence[str]) -> dict[str, str]:
    """The columns by role, as public data sets call them."""
    found = {
        role: next((column for column in usual if column in there), "") for role, usual in _USUAL.items()
    }
    missing = [role for role in NEEDED if not found[role]]
    if missing:
        raise ValueError(
            f"{name} has no column for {', '.join(missing)} under a usual name; say which it is in a job "
            f"file with data: {{dataset: {name}, columns: {{...}}}}; its columns are {', '.join(there)}"
        )
    return {role: column for role, column in found.items() if column}


def _load(data: HubData) -> datasets.Dataset:
    import datasets

    path = user_path(data.name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"a file must be one of {', '.join(_BUILDERS)}")
        files = {data.split: str(path)}
        return datasets.load_dataset(_BUILDERS[path.suffix], data_files=files, split=data.split)
    if any((path / name).is_file() for name in _SAVED):
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.Dataset):
            return saved
        if data.split not in saved:
            raise ValueError(f"there is no such split; it has {', '.join(saved)}")
        return saved[data.split]
    return datasets.load_dataset(str(path) if path.is_dir() else data.name, data.config, split=data.split)


def _image(value: Any, where: str, data: HubData, cache: Path) -> tuple[Path, str]:
    """The file of a picture, written if the data set contains it, and the name of its cluster."""
    stored = value if isinstance(value, dict) else {"path": value}
    if isinstance(content := stored.get("bytes"), bytes) and content:
        name = hashlib.sha256(content).hexdigest()
        path = cache / f"{name}{_suffix(content)}"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_bytes(content)
            partial.replace(path)
        return path, name
    given = stored.get("path")
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{where}: there is no image in column {data.columns['image']}; leave the row out")
    if "://" in given:
        raise ValueError(f"{where}: the image {shown(given)} is a URL; download it and name the file")
    source = user_path(data.name)
    beside = source.parent if source.is_file() else source
    return beside / given, given


def _suffix(content: bytes) -> str:
    """The file type of a picture; none if it is broken, which shows when it is asked about."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return f".{str(picture.format).lower()}"
    except Exception:  # readers of image formats raise what they like
        return ""
