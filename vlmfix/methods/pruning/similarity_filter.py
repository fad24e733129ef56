"""Similarity filter of TextMonkey: the image tokens without a twin stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import CountedPruning, select_each
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice


@register_method("similarity_filter")
@dataclass(frozen=True, kw_only=True)
class SimilarityFilter(CountedPruning):
    """The token filter of TextMonkey (arXiv 2403.04473): image tokens that are like no other stay.

    Acts on the image features before the language model; all images of a prompt are one pool. A
    reconstruction of the half that needs no training: in TextMonkey a trained cross-attention then folds the
    tokens that leave into those that stay, and here they are gone, so that its published results say nothing
    of this method.

    Args:
        kept_tokens: image tokens that stay, 1 or more; prompts with no more of them keep them all. None
            leaves the model as it is.
        direction: "later" compares a token with those after it, as the released code does, so that the last
            of several equal ones stays; "all" compares it with all others, so that none of them does.
    """

    direction: str = "later"

    info = MethodInfo(
        stage="pruning",
        changes="image tokens with a twin leave",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="reconstruction",
        paper="2403.04473",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("direction", self.direction, ("later", "all"))

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None

        def select(sample: int, tokens: Tensor) -> Tensor:
            assert self.kept_tokens is not None
            order = largest_similarity(tokens, later=self.direction == "later").argsort(stable=True)
            return order[: self.kept_tokens]

        return select_each(context.layout, hidden_states, select)


def largest_similarity(tokens: Tensor, *, later: bool) -> Tensor:
    """How like its nearest neighbour each token is (arXiv 2403.04473, released code).

    Args:
        tokens: `(tokens, features)`.
        later: only tokens after it are neighbours.

    Returns:
        Largest cosine, `(tokens,)` float32; -inf without a neighbour.
    """
    directions = nn.functional.normalize(tokens.float(), dim=-1)
    neighbours = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=tokens.device)
    neighbours = neighbours.triu(1) if later else neighbours.fill_diagonal_(False)
    return (directions @ directions.T).masked_fill(~neighbours, -torch.inf).amax(dim=1)
