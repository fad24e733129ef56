"""MCTF: in each layer of the vision encoder, patches merge that are alike, small and little looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlmfix.methods.base import MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range
from vlmfix.methods.vision.merging import Layer, Merge, TokenMerging, Tokens, best, renumbered


@register_method("mctf")
@dataclass(frozen=True, kw_only=True)
class MCTF(TokenMerging):
    """Multi-criteria token fusion (arXiv 2403.10030): as ToMe, before the attention, and not by similarity
    alone.

    A pair weighs the more the more alike its tokens are, the less attention they get and the fewer patches
    they are made of. Half of the tokens to leave go from even to odd places, the others back. The attention
    of the layer is computed once, on the tokens before the fusion, and serves both for the weights and, its
    rows and columns fused, for the tokens after it. Published for image classifiers that are trained with it;
    off the shelf, in a LLaVA, it is a reconstruction, with the number of tokens to fuse as in ToMe.

    Args:
        tau_similarity: temperature of the similarity, in [0.01, 1000]; the larger, the less it says.
        tau_attention: of the attention that a token gets.
        tau_size: of its size.
    """

    first_layer: int = 1
    tau_similarity: float = 1.0
    tau_attention: float = 20.0
    tau_size: float = 40.0

    info: ClassVar = MethodInfo(
        stage="vision",
        changes="similar, small patches with little attention merge inside the vision encoder",
        where="layers of the vision encoder from the second; prefill, before the language model",
        forwards=1.0,
        provenance="reconstruction",
        paper="2403.10030",
        families="with a CLIP or SigLIP encoder, a projector and a token a patch (LLaVA, PaliGemma)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau_similarity", "tau_attention", "tau_size"):
            check_range(name, getattr(self, name), 0.01, 1000)

    def run_layer(self, layer: Layer, tokens: Tokens) -> Tokens:
        normed = layer.parts.layer_norm1(tokens.states)
        query, key = (layer.heads(name, normed).float() for name in ("q_proj", "k_proj"))
        scores = query @ key.mT * layer.scale
        if self.proportional_attention:
            scores = scores + tokens.sizes.log()[:, None, None]
        weights = scores.softmax(dim=-1)
        received = weights.mean(dim=(1, 2))
        pairs = pair_weights(
            tokens.states,
            received,
            tokens.sizes,
            taus=(self.tau_similarity, self.tau_attention, self.tau_size),
        )
        merge = fused_pairs(pairs, self.merged_per_layer, first_is_class=layer.first_is_class)
        share = received * tokens.sizes
        fused = merge.applied(tokens, share)
        value = layer.heads("v_proj", layer.parts.layer_norm1(fused.states)).float()
        attended = fused_attention(weights, value, merge, share)
        return layer.feed_forward(fused._replace(states=layer.add_attended(fused.states, attended)))


def pair_weights(
    states: Tensor, received: Tensor, sizes: Tensor, *, taus: tuple[float, float, float]
) -> Tensor:
    """How much each pair of tokens at even and odd places asks to be one (arXiv 2403.10030, section 3).

    Args:
        states: `(pictures, tokens, width)`.
        received: attention that each token gets, averaged over heads and queries, `(pictures, tokens)`.
        sizes: `(pictures, tokens)`.
        taus: temperatures of similarity, attention and size.

    Returns:
        In [0, 1], `(pictures, even tokens, odd tokens)` float32.
    """
    of_similarity, of_attention, of_size = taus
    directions = nn.functional.normalize(states.float(), dim=-1)
    similarity = (directions[:, ::2] @ directions[:, 1::2].mT + 1) / 2
    weights = similarity.clamp(0, 1) ** (1 / of_similarity)
    for values, tau in ((received, of_attention), (sizes, of_size)):
        low = (values.amin(dim=1, keepdim=True) / values.clamp_min(1e-12)) ** (1 / tau)
        weights = weights * low[:, ::2, None] * low[:, None, 1::2]
    return weights


def fused_pairs(weights: Tensor, count: int, *, first_is_class: bool) -> Merge:
    """Half of the tokens to leave from even to odd places, then the others back (arXiv 2403.10030).

    Args:
        weights: of pairs, `(pictures, even tokens, odd tokens)`.
        count: how many leave.
        first_is_class: whether the first token stays as it is.

    Returns:
        The merge; tokens at even places come first after it.
    """
    pictures, even, odd = weights.shape
    count = min(count, (even + odd - first_is_class) // 2)
    if first_is_class:
        weights = weights.clone()
        weights[:, 0] = -torch.inf
    leaves = torch.zeros(pictures, even + odd, dtype=torch.bool, device=weights.device)
    partners = torch.zeros_like(leaves, dtype=torch.int64)
    partner, chosen = best(weights, count // 2)
    leaves[:, ::2], partners[:, ::2] = chosen, 2 * partner + 1
    back = weights.masked_fill(chosen[:, :, None], -torch.inf).mT
    partner, chosen = best(back, count - count // 2)
    leaves[:, 1::2], partners[:, 1::2] = chosen, 2 * partner
    return renumbered(partners, leaves, count)


def fused_attention(weights: Tensor, value: Tensor, merge: Merge, share: Tensor) -> Tensor:
    """Outputs of the heads after a fusion, by the attention before it: its columns summed, its rows averaged
    (arXiv 2403.10030, one step ahead).

    Args:
        weights: before the fusion, `(pictures, heads, tokens, tokens)`.
        value: of the tokens after it, `(pictures, heads, size, head_dim)`.
        merge: the fusion.
        share: with which tokens count in what they go into, `(pictures, tokens)`.

    Returns:
        `(pictures, heads, size, head_dim)`.
    """
    heads, head_dim = value.shape[1], value.shape[3]
    target = merge.target[:, None, :, None].expand(-1, heads, -1, head_dim)
    rows = (weights @ value.gather(2, target)).transpose(1, 2).flatten(2)
    fused = merge.mean(rows, share)
    return fused.view(*fused.shape[:2], heads, head_dim).transpose(1, 2)
