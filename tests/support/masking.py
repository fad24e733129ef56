"""The stock model in which keys are masked: what dropping tokens must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

Enter = Callable[[int, Tensor, list[Tensor]], "tuple[Tensor | None, Tensor] | None"]
"""From a layer, what enters it and the weights of all layers before: dropped keys, what enters instead."""

Peek = Callable[[int, Tensor], "Tensor | None"]
"""From a layer and its weights on what is left: keys that are dropped from this very layer on."""


def masked_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], *, enter: Enter | None = None, peek: Peek | None = None
) -> Tensor:
    """Logits of the last position, `(batch, vocabulary)`, with eager attention on full matrices.

    Args:
        enter: called before every layer.
        peek: called in every layer; weights are `(batch, heads, queries, keys)`.
    """
    hidden = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    seen: list[Tensor] = []

    def weights_of(scores: Tensor) -> Tensor:
        return scores.masked_fill(hidden[:, None, None], torch.finfo(scores.dtype).min).softmax(dim=-1)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        nonlocal hidden
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query @ key.transpose(2, 3) * kwargs["scaling"] + attention_mask
        dropped = None if peek is None else peek(module.layer_idx, weights_of(scores))
        if dropped is not None:
            hidden = hidden | dropped
        seen.append(weights_of(scores))
        return (seen[-1] @ value).transpose(1, 2).contiguous(), None

    def before(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> Any:
            nonlocal hidden
            entered = None if enter is None else enter(layer, args[0], seen)
            if entered is None:
                return None
            dropped, states = entered
            if dropped is not None:
                hidden = hidden | dropped
            return (states, *args[1:])

        return hook

    AttentionInterface.register("masked", attention)
    AttentionMaskInterface.register("masked", eager_mask)
    decoder = model.get_decoder()
    handles = [layer.register_forward_pre_hook(before(index)) for index, layer in enumerate(decoder.layers)]
    decoder.set_attn_implementation("masked")
    try:
        with torch.no_grad():
            return model(**inputs).logits[:, -1]
    finally:
        decoder.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
