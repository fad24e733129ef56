"""The synthetic scenes that stand in for real data, drawn once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import vlmfix
from vlmfix.evaluation.datasets.coco import write_coco
from vlmfix.evaluation.datasets.folder import DataFolder
from vlmfix.evaluation.datasets.synthetic.scenes import Split

SCENES = 500
SEED = 880_001
"""A world that neither training nor benchmarks draw from."""


def synthetic_folder(
    cache: str | Path,
    *,
    count: int = SCENES,
    seed: int = SEED,
    split: str = "test",
    progress: Callable[[int], None] | None = None,
) -> DataFolder:
    """Scenes as a data folder, drawn unless an earlier run or another process has drawn them.

    Args:
        cache: folder that keeps data sets.
        count: number of scenes, at least 1.
        seed: world seed, 0 or more.
        split: "test", or "train" for scenes like those of the training of the embedded models.
        progress: called with the number of scenes just drawn; not at all if they are there.

    Raises:
        ValueError: for `count` below 1, a negative seed, what is no whole number, or another split.
    """
    for name, number in (("count", count), ("seed", seed)):
        if type(number) is not int:
            raise ValueError(f"{name} of synthetic scenes is {number!r}; it must be a whole number")
    if split not in get_args(Split):
        raise ValueError(f"split of synthetic scenes is {split!r}; it must be {' or '.join(get_args(Split))}")
    # another version may draw otherwise
    kind = "" if split == "test" else f"-{split}"
    folder = Path(cache) / f"scenes-{vlmfix.__version__}-{seed}-{count}{kind}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
            drawn = write_coco(
                Path(partial) / "scenes", count=count, seed=seed, split=cast(Split, split), progress=progress
            )
            try:
                drawn.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster, and its scenes are the same
                    raise
    return DataFolder.find(folder)
