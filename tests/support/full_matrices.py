"""Plain attention over whole matrices, whose rows a test rewrites one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

NAME = "full_matrices"

Edit = Callable[[int, int, int, Tensor], Tensor | None]
"""From layer, sample, position of the query and its scores `(heads, keys)`, minus infinity where it sees
nothing, in float64, to weights of the same shape; None: the row stays as it is."""


@contextmanager
def full_matrices(model: PreTrainedModel, edit: Edit) -> Iterator[None]:
    """Within the block the model computes its attention row by row, in float64."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = (query @ key.transpose(2, 3) * kwargs["scaling"]).double()
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask < 0, -torch.inf)
        weights = scores.softmax(dim=-1).nan_to_num()  # padding sees nothing
        first = key.shape[2] - query.shape[2]
        for sample in range(query.shape[0]):
            for row in range(query.shape[2]):
                edited = edit(module.layer_idx, sample, first + row, scores[sample, :, row].clone())
                if edited is not None:
                    weights[sample, :, row] = edited
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    decoder = model.get_decoder()
    decoder.set_attn_implementation(NAME)
    try:
        yield
    finally:
        decoder.set_attn_implementation("sdpa")


def step_logits(model: PreTrainedModel, inputs: dict[str, Tensor], steps: int = 4) -> Tensor:
    """Raw logits of every generated position, `(steps, batch, vocabulary)`."""
    output = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(output.logits)
