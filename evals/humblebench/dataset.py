"""Questions of HumbleBench as samples: from JSON, from Parquet or the hub, or about scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData, HubRow, hub_samples
from vlmfix.evaluation.files.readers import read_records, shown
from vlmfix.evaluation.sample import Sample, in_order
from vlmfix.evaluation.tasks.protocols import Protocol

from .noise import write_noise
from .rows import (
    Row,
    Variant,
    checked_row,
    options_of,
    read_rows,
    warn_of_old_types,
    without_answer,
)
from .scenes import build_rows

FILES = ("[Hh]umble[Bb]ench*.json*", "**/[Hh]umble[Bb]ench*.json*", "**/*.parquet")
"""Where the data may lie below a folder."""

_COLUMNS = {"image": "image", "question": "question", "answer": "label", "id": "question_id", "group": "type"}
_SPLIT = "train"


def variant_of(protocol: Protocol) -> Variant:
    """The variant that a protocol asks."""
    return cast(Variant, protocol.own["variant"])


def data_samples(data: DataFolder | HubData, protocol: Protocol, built: Path, seed: int) -> list[Sample]:
    """The questions of a folder, whose rows are JSON or Parquet, or of a data set by name.

    Args:
        data: paths of pictures are below the folder of their file.
        protocol: of the task humblebench.
        built: folder that receives pictures.
        seed: of the noise.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: they are broken.
    """
    noise = None
    if variant_of(protocol) == "humble_gn":
        noise, sha256 = write_noise(seed, built)
    if isinstance(data, DataFolder) and data.is_synthetic:
        samples = row_samples(
            build_rows(data), protocol, lambda row: noise or data.image(row.image, "humblebench")
        )
    elif isinstance(data, HubData):
        samples = _hub_rows(data, protocol, built, noise)
    elif (path := data.find_file("humblebench", *FILES)).suffix == ".parquet":
        parquet = HubData(str(path.parent), _SPLIT, _COLUMNS)
        samples = _hub_rows(parquet, protocol, built, noise)
        data.used.update(parquet.used)
    else:
        rows = read_rows(read_records(path))
        data.record("humblebench", path, len(rows))
        samples = row_samples(rows, protocol, lambda row: noise or path.parent / row.image)
    if noise is not None:
        data.used["noise"] = {"seed": seed, "sha256": sha256}
    return samples


def row_samples(
    rows: Sequence[Row], protocol: Protocol, picture: Callable[[Row], Path] | None = None
) -> list[Sample]:
    """Rows as samples of the protocol's variant, `humblebench/<question id>`, in the order of their ids.

    Args:
        rows: of the data.
        protocol: of the task humblebench.
        picture: the file of a row's picture; None: nobody is asked about it.
    """
    return in_order(_sample(row, protocol, picture and picture(row), row.image) for row in rows)


def _hub_rows(data: HubData, protocol: Protocol, built: Path, noise: Path | None) -> list[Sample]:
    old: Counter[str] = Counter()

    def sample(row: HubRow) -> Sample:
        if not isinstance(row.answer, str):
            raise ValueError(f"{row.where}: the label is {shown(row.answer)}; it must be one of A to E")
        read = Row(row.id, row.cluster, row.question, row.answer, row.group, row.where)
        checked = checked_row(read)
        old[read.type] += checked.type != read.type
        return _sample(checked, protocol, noise or row.image, row.cluster)

    samples = hub_samples(data, sample, built / "pictures")
    warn_of_old_types(old)
    return samples


def _sample(row: Row, protocol: Protocol, image: Path | None, cluster: str) -> Sample:
    asked = without_answer(row) if variant_of(protocol) == "humble_e" else row
    meta = {"question": asked.question, "type": asked.type, "options": options_of(asked.question)}
    id = f"humblebench/{asked.id}"
    return Sample(id, cluster, image, protocol.ask(asked.question), asked.label, meta)
