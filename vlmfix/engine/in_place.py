"""Refusal of hooks that change in place what the model owns, or return something else than they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from vlmfix.engine.method import MethodHooks
from vlmfix.errors import UnsupportedError

Result = TypeVar("Result")


def called(
    method: MethodHooks, hook: str, tensor: Tensor, call: Callable[[Tensor], Result]
) -> Result | Tensor:
    """What a hook returns for `tensor`; `tensor` itself, where the hook gives back what it got.

    Args:
        method: whose hook it is.
        hook: its name.
        tensor: what the model owns.
        call: calls the hook on a tensor.

    Raises:
        UnsupportedError: the hook changed the tensor in place, or an edit is no tensor of the same shape.
    """
    given = tensor
    if tensor.is_inference():  # which counts no changes
        with torch.inference_mode(False):
            given = tensor.clone()
    version = given._version
    result = call(given)
    if given._version != version:
        raise UnsupportedError(
            f"{type(method).__name__}.{hook} changed its tensor in place, which belongs to the model; return "
            "a new tensor"
        )
    if result is given:
        return tensor
    if hook.startswith("edit_"):
        check_edit(method, hook, result, tensor)
    return result


def check_edit(method: MethodHooks, hook: str, edited: object, before: Tensor) -> None:
    """Refuse what cannot stand in the place of a tensor.

    Raises:
        UnsupportedError: it is no tensor, or has another shape.
    """
    if not isinstance(edited, Tensor) or edited.shape != before.shape:
        found = f"shape {tuple(edited.shape)}" if isinstance(edited, Tensor) else type(edited).__name__
        raise UnsupportedError(
            f"{type(method).__name__}.{hook} returned {found}; it must return a tensor of the shape that it "
            f"got, {tuple(before.shape)}"
        )
