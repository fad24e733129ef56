"""What methods keep of a run, cut down to some of its sequences."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlmfix.engine.layout import Rows


def may_be_by_sequence(value: Any, batch: int) -> bool:
    """Whether a list or tuple of anything but tensors may have one item a sequence."""
    return (
        isinstance(value, list | tuple)
        and len(value) == batch
        and not all(isinstance(each, Tensor) for each in value)
        and not hasattr(value, "_fields")
    )


def of_rows(value: Any, rows: slice | Tensor, batch: int) -> Any:
    """What some of `batch` sequences have of a value that a method keeps.

    Raises:
        ValueError: it does not tell the sequences apart, so that nobody knows whose its numbers are.
    """
    if isinstance(value, Rows):
        return Rows(value.index, value.mask[rows])
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] == 1:
            return value
        if value.shape[0] != batch:
            shape = tuple(value.shape)
            raise ValueError(
                f"a method keeps a tensor of shape {shape} in context.state; its first dimension must count "
                f"the {batch} sequences, or be 1 for all"
            )
        return value[rows]
    if isinstance(value, tuple):
        parts = [of_rows(each, rows, batch) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict):
        return {key: of_rows(each, rows, batch) for key, each in value.items()}
    if isinstance(value, list):
        return [of_rows(each, rows, batch) for each in value]
    return value
