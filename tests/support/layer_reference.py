"""Answers of methods that read inner layers, worked out without a cache, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from vlmfix.engine.kl import RULED_OUT

Mix = Callable[[Tensor, list[Tensor]], Tensor]
"""From logits `(vocabulary,)` and the stream at each exit `(hidden,)` to mixed logits."""


def answers(
    model: PreTrainedModel, family: str, inputs: dict[str, Tensor], mix: Mix, *, tokens: int = 6
) -> Tensor:
    """Mixed logits of every generated position, each prompt alone, `(steps, batch, vocabulary)`."""
    rows = []
    for single in families.split(family, model, inputs):
        new: list[int] = []
        steps = []
        for _ in range(tokens):
            steps.append(mix(*read(model, families.continued(single, new))))
            new.append(int(steps[-1].argmax()))
        rows.append(torch.stack(steps))
    return torch.stack(rows, dim=1)


@torch.no_grad()
def read(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits of the next token of a batch of one, and the stream at every exit."""
    output = model(**inputs, use_cache=False, output_hidden_states=True)
    states = [states[0, -1] for states in output.hidden_states[:-1]]  # the last of them is normed
    return output.logits[0, -1].float(), states


def generated(model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    """Raw logits of every generated position as `released`, `(steps, batch, vocabulary)`."""
    output = model.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )
    return released(torch.stack(output.logits))


def released(logits: Tensor) -> Tensor:
    """Logits as released loops have them: minus infinity where a token is ruled out, here finite and far
    below the others."""
    assert logits.isfinite().all()
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) - RULED_OUT / 2, -torch.inf)
