"""What methods keep of a run, cut down to some of its sequences, or put together with that of another."""

from __future__ import annotations

from typing import Any

import torch
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


def joined(first: Any, second: Any, batches: tuple[int, int]) -> Any:
    """What a method keeps of two runs that go on as one, the sequences of the first one in front.

    Args:
        first: of the first run.
        second: of the other one, in the same form.
        batches: sequences of each.

    Raises:
        ValueError: the two do not go together.
    """
    if type(first) is not type(second):
        raise ValueError(f"a method keeps a {type(first).__name__} and a {type(second).__name__}")
    if isinstance(first, Rows):
        if not torch.equal(first.index, second.index):
            raise ValueError("a method keeps other rows of the one prompts than of the others")
        return Rows(first.index, torch.cat([first.mask, second.mask]))
    if isinstance(first, Tensor):
        return _joined_tensors(first, second, batches)
    if isinstance(first, list | tuple) and len(first) == len(second):
        parts = [joined(*each, batches) for each in zip(first, second, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, dict) and first.keys() == second.keys():
        return {key: joined(value, second[key], batches) for key, value in first.items()}
    plain = isinstance(first, str | int | float | bool | torch.device | torch.dtype)
    if first is second or (plain and first == second):
        return first
    raise ValueError(f"a method keeps a {type(first).__name__}, which differs between the prompts")


def joined_by_row(
    first: Tensor | None, second: Tensor | None, batches: tuple[int, int], dim: int = 0
) -> Tensor | None:
    """Tensors with a row for each sequence, or one for all, in one dimension; None stays None.

    Raises:
        ValueError: they differ in another dimension, or one of them is missing.
    """
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise ValueError("one of two runs keeps nothing where the other one does")
    dim %= first.ndim
    rows = [
        each.expand(*each.shape[:dim], batch if each.shape[dim] == 1 else -1, *each.shape[dim + 1 :])
        for each, batch in zip((first, second), batches, strict=True)
    ]
    shapes = [[*each.shape[:dim], *each.shape[dim + 1 :]] for each in rows]
    if shapes[0] != shapes[1] or [each.shape[dim] for each in rows] != list(batches):
        raise ValueError(f"tensors of shape {tuple(first.shape)} and {tuple(second.shape)} do not join")
    return torch.cat(rows, dim=dim)


def _joined_tensors(first: Tensor, second: Tensor, batches: tuple[int, int]) -> Tensor:
    for each, batch in zip((first, second), batches, strict=True):
        if each.ndim == 0 or (each.shape[0] == 1 and batch > 1):
            if first.shape == second.shape and torch.equal(first, second):
                return first
            raise ValueError("a method keeps numbers of all prompts, which differ")
    found = joined_by_row(first, second, batches)
    assert found is not None
    return found
