"""Answers of methods that edit the residual stream, worked out by hooks of their own, without a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support import families

Edit = Callable[[Tensor], Tensor]
"""From what a module gives, `(tokens, hidden)` of one prompt and its answer so far, to what goes on."""


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    family: str,
    inputs: dict[str, Tensor],
    edits_of: Callable[[dict[str, Tensor]], Mapping[nn.Module, Edit]],
    *,
    tokens: int = 3,
) -> Tensor:
    """Logits of every generated position, each prompt read alone and in full, `(steps, batch, vocabulary)`.

    Args:
        edits_of: what is edited of a prompt, by module.
    """
    rows = []
    for single in families.split(family, model, inputs):
        edits = edits_of(single)
        new: list[int] = []
        steps = []
        with ExitStack() as undo:
            for module, edit in edits.items():
                undo.callback(module.register_forward_hook(_hook(edit)).remove)
            for _ in range(tokens):
                logits = model(**families.continued(single, new), use_cache=False).logits[0, -1]
                steps.append(logits.float())
                new.append(int(logits.argmax()))
        rows.append(torch.stack(steps))
    return torch.stack(rows, dim=1)


@torch.no_grad()
def seen(model: PreTrainedModel, inputs: dict[str, Tensor], module: nn.Module) -> tuple[Tensor, Tensor]:
    """What a module of the stock model is given and gives, `(tokens, hidden)` each, of a batch of one."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        found.extend((given[0], (output[0] if isinstance(output, tuple) else output)[0]))

    hook = module.register_forward_hook(keep, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return found[0], found[1]


def _hook(edit: Edit) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0][0])[None], *output[1:])
        return edit(output[0])[None]

    return hook


def each_from(first: int, edit: Edit) -> Edit:
    """An edit of each state `(hidden,)` by itself, from one position on."""

    def edited(states: Tensor) -> Tensor:
        return torch.stack([edit(state) if place >= first else state for place, state in enumerate(states)])

    return edited
