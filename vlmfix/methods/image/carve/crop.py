"""Maps over an image, the regions where they are high, and the image made of these regions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from vlmfix.methods.multi_pass import MultiPassResult
from vlmfix.models.image_grid.grids import Box, ImageTokens

# A narrow region is enlarged to at most so many times the pixels of the image.
_MAX_ENLARGEMENT = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Refinement(MultiPassResult):
    """What CARVE found out about one prompt.

    Args:
        answer: to the prompt, about the refined image; plain decoding's where `refined` is False.
        final: the same with its tokens; None while it is not written yet.
        first_answer: what the model wrote in the pass that made the question's map, about the original
            image: greedy, and cut at `max_map_tokens`; "" without such a pass.
        map_words: its content words, where the steps that wrote them alone made the question's map; (): all
            steps did.
        original: the image that was refined, or would have been; None without map passes.
        saliency: fused map in pixels of `original`, `(height, width)` float, NaN where the model does not
            see the image; None without map passes.
        box: of the kept regions, left, top, right and bottom in pixels of `original`.
        image: the refined image.
        refined: whether the answer is about the refined image.
        reason: why it is not; "" if it is.
    """

    first_answer: str = ""
    map_words: tuple[str, ...] = ()
    original: Image.Image | None = field(default=None, repr=False)
    saliency: np.ndarray | None = field(default=None, repr=False)
    box: tuple[int, int, int, int] | None = None
    image: Image.Image | None = field(default=None, repr=False)
    refined: bool = False

    def save(self, directory: str | Path, stem: str) -> list[Path]:
        """Write `<stem>-map.png`, the map over the image with the box, and `<stem>-refined.png`.

        Returns:
            The files, as far as there is something to show.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        if self.original is not None and self.saliency is not None:
            written.append(folder / f"{stem}-map.png")
            heat_map(self.original, self.saliency, *([] if self.box is None else [self.box])).save(
                written[-1]
            )
        if self.image is not None:
            written.append(folder / f"{stem}-refined.png")
            self.image.save(written[-1])
        return written


def saliency_map(values: Tensor, image: ImageTokens, size: tuple[int, int]) -> np.ndarray:
    """Values of the tokens of one image as a map over its pixels; blocks that see the same area add up.

    Args:
        values: `(tokens,)`.
        image: where the tokens lie.
        size: width and height of the image in pixels.

    Returns:
        `(height, width)` float64, NaN where no token sees the image.
    """
    saliency = np.full((size[1], size[0]), np.nan)
    for grid in image.grids:
        assert grid.box is not None
        block = to_image(values[grid.offsets()].double().numpy(), grid.box, size)
        saliency = np.where(np.isnan(saliency), block, saliency + np.nan_to_num(block))
    return saliency


def to_image(grid: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Resize a grid of values bilinearly onto the area that it covers.

    Args:
        grid: `(rows, columns)`.
        box: the area in pixels of the image, which may reach beyond it.
        size: width and height of the image in pixels.

    Returns:
        `(height, width)` float64, NaN at pixels whose centre lies outside the box.
    """
    across = _interpolation(grid.shape[1], box[0], box[2], size[0])
    down = _interpolation(grid.shape[0], box[1], box[3], size[1])
    resized: np.ndarray = down @ grid @ across.T
    return resized


def _interpolation(cells: int, start: float, end: float, pixels: int) -> np.ndarray:
    """Linear weights of the cells between `start` and `end` at each pixel, `(pixels, cells)`."""
    share = (np.arange(pixels) + 0.5 - start) / (end - start)
    place = np.clip(share * cells - 0.5, 0, cells - 1)
    weights: np.ndarray = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))
    weights[(share < 0) | (share > 1)] = np.nan
    return weights


def select_regions(
    saliency: np.ndarray, *, kept_pixel_fraction: float, max_regions: int, region_rule: str
) -> np.ndarray:
    """The connected regions of the most salient pixels.

    Pixels at or above the quantile `1 - kept_pixel_fraction` of those that are seen form regions by their
    four neighbours, which rank by their sums; of equal ones, the first in raster order goes first.

    Args:
        saliency: `(height, width)`, NaN at pixels that the model does not see.
        kept_pixel_fraction: share of the seen pixels above the threshold, in (0, 1].
        max_regions: see `region_rule`.
        region_rule: "max" keeps the first `max_regions`, "at_least" these or, if that is more, the share
            `kept_pixel_fraction` of all regions, rounded down.

    Returns:
        `(height, width)` bool; all True if no pixel is seen.
    """
    seen = saliency[~np.isnan(saliency)]
    if not len(seen):
        return np.ones(saliency.shape, dtype=bool)
    labels, count = ndimage.label(saliency >= np.quantile(seen, 1 - kept_pixel_fraction))
    inside = np.flatnonzero(labels)
    owners = labels.ravel()[inside] - 1
    sums = np.bincount(owners, weights=saliency.ravel()[inside], minlength=count)
    first = np.zeros(count, dtype=np.int64)
    first[owners[::-1]] = inside[::-1]
    kept = max_regions if region_rule == "max" else max(max_regions, int(count * kept_pixel_fraction))
    chosen = np.zeros(count + 1, dtype=bool)
    chosen[1 + np.lexsort((first, -sums))[:kept]] = True
    mask: np.ndarray = chosen[labels]
    return mask


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is True, in pixels; right and bottom are exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def refine(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Blacken an image outside the mask, crop it to the box of the mask, and enlarge it (Lanczos).

    The result is as wide and as high as the image, and larger on one axis where the shapes differ, but never
    of more than 16 times its pixels. Sides are rounded down, as in the released code of CARVE.

    Args:
        image: RGB.
        mask: `(height, width)` bool, at least one pixel True.
    """
    box = bounding_box(mask)
    width, height = box[2] - box[0], box[3] - box[1]
    factor = max(image.width / width, image.height / height)
    factor = min(factor, (_MAX_ENLARGEMENT * image.width * image.height / (width * height)) ** 0.5)
    kept = Image.fromarray(np.asarray(image) * mask[..., None]).crop(box)
    size = max(int(width * factor), 1), max(int(height * factor), 1)
    return kept.resize(size, Image.Resampling.LANCZOS)


def heat_map(image: Image.Image, saliency: np.ndarray, *boxes: tuple[int, int, int, int]) -> Image.Image:
    """An image half covered by its map, from black over red and yellow to white, with boxes drawn in."""
    low, high = np.nanmin(saliency), np.nanmax(saliency)
    heat = np.nan_to_num((saliency - low) / max(high - low, np.finfo(float).tiny))
    colours = np.clip(3 * heat[..., None] - np.arange(3), 0, 1) * 255
    mixed = Image.fromarray(((np.asarray(image.convert("RGB")) + colours) / 2).astype(np.uint8))
    for box in boxes:
        edges = (box[0], box[1], box[2] - 1, box[3] - 1)
        ImageDraw.Draw(mixed).rectangle(edges, outline="white", width=max(1, max(image.size) // 200))
    return mixed
