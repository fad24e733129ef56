"""What a model computes without us: the attention kernel that it was loaded with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmfix.engine.attention_formulas import causal
from vlmfix.engine.kernels import eager_function
from vlmfix.engine.layout import PromptLayout


def own_kernel(
    name: str,
    layout: PromptLayout | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the model computes without us: its kernel, given the form of mask that this kernel takes."""
    if name == "eager":
        mask = _additive(attention_mask, query, key)
        return eager_function(module)(module, query, key, value, mask, **kwargs)
    if name != "sdpa":  # FlashAttention takes the 2-D mask
        if layout is not None:
            attention_mask = layout.key_mask(key.shape[2], key.device)
        elif attention_mask is not None and attention_mask.ndim == 4:  # of a pass without a run
            attention_mask = attention_mask[:, 0, -1]
    output: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS[name](
        module, query, key, value, attention_mask, **kwargs
    )
    return output


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """`mask` as eager attention wants it: zeros and the lowest number of the dtype."""
    if mask is None:
        if query.shape[2] == 1:
            return None
        positions = torch.arange(query.shape[2], device=query.device)
        mask = causal(positions, query.shape[2], key.shape[2])[None, None]
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.finfo(query.dtype).min)
