"""The feed-forward part of the last layer, which computes the newest row alone where no other is wanted.

What leaves the last layer at other tokens is read by nobody then: their keys and values come before it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import stream_module


def install(decoder: Any, is_enough: Callable[[], bool], undo: ExitStack) -> None:
    """Let the last layer of a decoder do so, where it is built of linear maps alone.

    Args:
        is_enough: whether nothing but the newest row of this pass is wanted.
        undo: gives the layer its own forward back.
    """
    try:
        part = stream_module(decoder, len(decoder.layers) - 1, "feed_forward_input")
    except UnsupportedError:  # built in a way that is not known
        return
    # Experts may give another shape, and what was put on an instance has its reason.
    if _is_of_linear_maps(part) and "forward" not in vars(part):
        vars(part)["forward"] = partial(_forward, part, is_enough)
        undo.callback(vars(part).pop, "forward")


def _is_of_linear_maps(part: nn.Module) -> bool:
    weights = {name.rpartition(".")[0] for name, _ in part.named_parameters()}
    return all(isinstance(dict(part.named_children()).get(name), nn.Linear) for name in weights)


def _forward(part: nn.Module, is_enough: Callable[[], bool], *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(part).forward, part)
    if kwargs or len(args) != 1 or not is_enough():
        return forward(*args, **kwargs)
    states: Tensor = args[0]
    return forward(states[:, -1:]).expand_as(states)
