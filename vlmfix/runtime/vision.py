"""Images encoded once for several prompts about them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


@contextmanager
def cached_vision(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, images that equal those of the pass before are not encoded again.

    The last output of `get_image_features` is kept until the block ends. Tensors are compared by value, so
    that a changed pixel or grid is encoded anew.

    Args:
        model: an image-text-to-text model of transformers; it leaves the block as it entered.
    """
    core = model.base_model
    encode = core.get_image_features
    known: tuple[Any, Any] | None = None

    @functools.wraps(encode)
    def cached(*args: Any, **kwargs: Any) -> Any:
        nonlocal known
        if known is None or not _equal(known[0], (args, kwargs)):
            known = (args, kwargs), encode(*args, **kwargs)
        return copy.copy(known[1])  # generation expands the output in place

    attributes = vars(core)
    before = {name: attributes[name] for name in ("get_image_features",) if name in attributes}
    attributes["get_image_features"] = cached
    try:
        yield
    finally:
        del attributes["get_image_features"]
        attributes.update(before)


def _equal(one: Any, other: Any) -> bool:
    """Whether two arguments are the same, tensors by value; what cannot be compared is not."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return bool(one == other)
