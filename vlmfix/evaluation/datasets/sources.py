"""Sources of a job's data: synthetic scenes, a folder, single files, or a data set by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.hub import HubData, is_data_set
from vlmfix.evaluation.datasets.synthetic.synthetic import SCENES, synthetic_folder
from vlmfix.settings import user_path

SYNTHETIC = "synthetic"
_SPLIT = "test"
_SCENE_KEYS = ("count", "seed", "split")
_HUB_KEYS = {"dataset", "split", "columns", "config"}


def open_data(
    data: str | Mapping[str, Any], cache: Path, progress: Callable[[int], None] | None = None
) -> DataFolder | HubData:
    """The data that a job names.

    Args:
        data: "synthetic"; the folder of a data set, or a Parquet file; or a mapping: paths for
            `DataFolder.find`, or `dataset`, `split`, `columns` and `config` of a `HubData`, or
            `synthetic: {count:, seed:, split:}`.
        cache: folder that keeps drawn scenes.
        progress: called with the number of scenes just drawn.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: keys that nothing has, or that do not go together.
    """
    if data == SYNTHETIC:
        return synthetic_folder(cache, progress=progress)
    if isinstance(data, str):
        if not user_path(data).exists():
            raise FileNotFoundError(
                f"no data folder {data!r}: give 'synthetic' or a folder; a data set by name needs a job file "
                "with data: {dataset: NAME, split: ..., columns: {...}}"
            )
        if is_data_set(user_path(data)):
            return HubData(data, _SPLIT)
        return DataFolder.find(data)
    if SYNTHETIC in data:
        settings = data[SYNTHETIC]
        if len(data) > 1 or not isinstance(settings, Mapping) or settings.keys() - set(_SCENE_KEYS):
            raise ValueError(f"data has {dict(data)}; of synthetic scenes, set {', '.join(_SCENE_KEYS)}")
        return synthetic_folder(cache, progress=progress, **settings)
    if "dataset" in data:
        unknown = sorted(map(str, data.keys() - _HUB_KEYS))
        if unknown:
            raise ValueError(
                f"data has {', '.join(unknown)}; beside dataset it has {', '.join(sorted(_HUB_KEYS))}"
            )
        columns = data.get("columns", {})
        if not isinstance(columns, Mapping):
            raise ValueError(f"data: columns are {columns!r}; they must be a mapping from roles to names")
        for key in ("dataset", "split", "config"):
            value = data.get(key)
            if not isinstance(value, str | None) or (key == "dataset" and not value):
                raise ValueError(f"data: {key} is {value!r}; it must be a name, in quotes if need be")
        return HubData(
            name=data["dataset"],
            split=data.get("split") or _SPLIT,
            columns=dict(columns),
            config=data.get("config"),
        )
    return DataFolder.find(**{str(name): path for name, path in data.items()})


def scene_count(data: str | Mapping[str, Any]) -> int:
    """Scenes that `open_data` may have to draw."""
    if data == SYNTHETIC:
        return SCENES
    settings = data.get(SYNTHETIC) if isinstance(data, Mapping) else None
    count = settings.get("count", SCENES) if isinstance(settings, Mapping) else 0
    return count if isinstance(count, int) else 0
