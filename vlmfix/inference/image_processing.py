"""Images that several prompts of a batch show, preprocessed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

# Outputs that list the parts of all images in one, and where the number of parts of each image stands.
_PARTS: dict[str, Callable[[Any], list[int]]] = {
    "image_grid_thw": lambda grids: torch.as_tensor(grids).prod(dim=-1).tolist(),
    "num_patches": list,
}


@contextmanager
def each_image_once(processor: ProcessorMixin) -> Iterator[None]:
    """Within the block, the processor preprocesses an image object once a call, however often it is given.

    One thread at a time is inside such a block.

    Args:
        processor: of transformers; it leaves the block as it entered.
    """
    with _one_at_a_time:
        attributes = vars(processor)
        stock = attributes.get("image_processor")
        if stock is None:
            yield
            return
        attributes["image_processor"] = _Once(stock)
        try:
            yield
        finally:
            attributes["image_processor"] = stock


_one_at_a_time = threading.RLock()


class _Once:
    """An image processor that is called with each image once."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
            return self._stock(images, *args, **kwargs)
        once = list({id(image): image for image in images}.values())
        if len(once) == len(images):
            return self._stock(images, *args, **kwargs)
        places = [next(place for place, other in enumerate(once) if other is image) for image in images]
        processed = self._stock(once, *args, **kwargs)
        repeated = {name: _repeated(name, value, processed, places) for name, value in processed.items()}
        if any(value is None for value in repeated.values()):
            return self._stock(images, *args, **kwargs)
        return BatchFeature(repeated)


def _repeated(name: str, value: Any, processed: Any, places: Sequence[int]) -> Any:
    """What an output would be for the images at `places`; None: it does not come one an image."""
    if not isinstance(value, Tensor | list | np.ndarray) or getattr(value, "ndim", 1) == 0:
        return None
    images = max(places) + 1
    counts = next((list(read(processed[key])) for key, read in _PARTS.items() if key in processed), None)
    if counts is not None and name == "pixel_values" and len(value) == sum(counts):
        bounds = list(pairwise(accumulate(counts, initial=0)))
        rows = [row for place in places for row in range(*bounds[place])]
    elif len(value) == images:
        rows = list(places)
    else:
        return None
    if isinstance(value, Tensor):
        return value[torch.tensor(rows)]
    return [value[row] for row in rows] if isinstance(value, list) else value[rows]
