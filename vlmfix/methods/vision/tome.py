"""ToMe: in each layer of the vision encoder, patches that are alike become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.vision.merging import Layer, Merge, TokenMerging, Tokens, best, renumbered


@register_method("tome")
@dataclass(frozen=True, kw_only=True)
class ToMe(TokenMerging):
    """Token merging (arXiv 2210.09461): between attention and feed-forward part, the most similar pairs of
    tokens merge.

    Every second token looks for the most similar of the others, by the cosine of their keys; the pairs that
    are most alike become their mean. Published for image classifiers. In a LLaVA the language model reads the
    merged tokens, and how many merge in a layer are reconstructions: by default a third of the 576 patches of
    LLaVA-1.5 are gone in the end.
    """

    info: ClassVar = MethodInfo(
        stage="vision",
        changes="similar patches merge inside the vision encoder",
        where="layers of the vision encoder; prefill, before the language model",
        forwards=1.0,
        provenance="reconstruction",
        paper="2210.09461",
        families="with a CLIP or SigLIP encoder, a projector and a token a patch (LLaVA, PaliGemma)",
    )

    def run_layer(self, layer: Layer, tokens: Tokens) -> Tokens:
        normed = layer.parts.layer_norm1(tokens.states)
        query, key, value = (layer.heads(name, normed) for name in ("q_proj", "k_proj", "v_proj"))
        bias = tokens.sizes.log().to(query.dtype)[:, None, None] if self.proportional_attention else None
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, scale=layer.scale
        )
        tokens = tokens._replace(states=layer.add_attended(tokens.states, attended))
        merge = similar_pairs(
            key.float().mean(dim=1), self.merged_per_layer, first_is_class=layer.first_is_class
        )
        return layer.feed_forward(merge.applied(tokens, tokens.sizes))


def similar_pairs(metric: Tensor, count: int, *, first_is_class: bool) -> Merge:
    """The pairs of tokens at even and odd places that are most alike (arXiv 2210.09461, section 3).

    Args:
        metric: keys averaged over the heads, `(pictures, tokens, head_dim)` float32.
        count: how many tokens at even places leave; at most all but the class token.
        first_is_class: whether the first token stays as it is.

    Returns:
        The merge; tokens at even places come first after it.
    """
    directions = nn.functional.normalize(metric, dim=-1)
    scores = directions[:, ::2] @ directions[:, 1::2].mT
    if first_is_class:
        scores[:, 0] = -torch.inf
    count = min(count, (metric.shape[1] - first_is_class) // 2)
    partner, chosen = best(scores, count)
    leaves = torch.zeros(metric.shape[:2], dtype=torch.bool, device=metric.device)
    leaves[:, ::2] = chosen
    partners = torch.zeros_like(leaves, dtype=torch.int64)
    partners[:, ::2] = 2 * partner + 1
    return renumbered(partners, leaves, count)
