"""Training scenes rendered once to arrays, with a label for every image token."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlmfix.evaluation.datasets.synthetic.rendering import paint
from vlmfix.evaluation.datasets.synthetic.scenes import (
    CATEGORIES,
    COLORS,
    Scene,
    sample_scene,
)

SEED = 20260
CATEGORY_NAMES = list(CATEGORIES)
COLOR_NAMES = list(COLORS)
# Share of a token's pixels an object must own to be its label.
MIN_SHARE = 0.1


@dataclass(frozen=True)
class Rendered:
    """Scenes of one size: pixels `(n, height, width, 3)` uint8, labels `(n, rows, columns, 3)` int8.

    The last axis of the labels holds the category (0 for background, else its number plus 1), the colour
    (0 for background) and whether the token holds the middle of an object.
    """

    size: tuple[int, int]
    pixels: np.ndarray
    labels: np.ndarray

    def scene(self, index: int) -> Scene:
        return sample_scene(SEED, index, split="train", size=self.size)


def rendered(folder: Path, size: tuple[int, int], cell: int, count: int) -> Rendered:
    """The first `count` training scenes of a size, labels for tokens of `cell` pixels, drawn only once."""
    stem = folder / f"scenes-{size[0]}x{size[1]}-{cell}-{count}"
    paths = (stem.with_suffix(".pixels.npy"), stem.with_suffix(".labels.npy"))
    if not paths[1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        ranges = np.array_split(np.arange(count), 16)
        with ProcessPoolExecutor(2) as pool:
            parts = list(pool.map(_draw, [(size, cell, part.tolist()) for part in ranges]))
        for path, arrays in zip(paths, zip(*parts, strict=True), strict=True):
            np.save(path, np.concatenate(arrays), allow_pickle=False)
    return Rendered(size, *(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths))


def _draw(job: tuple[tuple[int, int], int, list[int]]) -> tuple[np.ndarray, np.ndarray]:
    size, cell, indices = job
    pixels, labels = [], []
    for index in indices:
        scene = sample_scene(SEED, index, split="train", size=size)
        image, owner = paint(scene)
        pixels.append(image)
        labels.append(token_labels(scene, owner, cell))
    return np.stack(pixels), np.stack(labels)


def token_labels(scene: Scene, owner: np.ndarray, cell: int) -> np.ndarray:
    """Labels `(rows, columns, 3)` of image tokens from the owner of each pixel (see `Rendered`)."""
    rows, columns = owner.shape[0] // cell, owner.shape[1] // cell
    cells = owner[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    counts = np.stack([(cells == i).sum((1, 3)) for i in range(len(scene.objects))], -1)
    best = counts.argmax(-1)
    labels = np.zeros((rows, columns, 3), dtype=np.int8)
    taken = counts.max(-1) >= MIN_SHARE * cell * cell
    for position, item in enumerate(scene.objects):
        here = taken & (best == position)
        labels[here, 0] = CATEGORY_NAMES.index(item.category) + 1
        labels[here, 1] = COLOR_NAMES.index(item.color)
        if here.any():
            x, y, width, height = item.box
            middle = ((y + height / 2) / cell - 0.5, (x + width / 2) / cell - 0.5)
            own = np.argwhere(here)
            row, column = own[np.abs(own - middle).sum(1).argmin()]
            labels[row, column, 2] = 1
    return labels


def regions(rows: int, columns: int) -> np.ndarray:
    """The third of the image, 0 to 8, of every image token `(rows, columns)`."""
    row = (np.arange(rows) + 0.5) * 3 // rows
    column = (np.arange(columns) + 0.5) * 3 // columns
    return (row[:, None] * 3 + column).astype(np.int64)


def corners(rows: int, columns: int) -> np.ndarray:
    """The twelve tokens in and beside the corners `(rows, columns)` bool; visual sinks where empty."""
    row = np.minimum(np.arange(rows), np.arange(rows)[::-1])
    column = np.minimum(np.arange(columns), np.arange(columns)[::-1])
    return row[:, None] + column <= 1


def sink_tokens(labels: Tensor) -> Tensor:
    """Image tokens `(batch, rows, columns)` bool that become visual sinks: empty corners."""
    return (labels[..., 0] == 0) & torch.from_numpy(corners(*labels.shape[1:3]))
