"""DivPrune: the image tokens that are least like each other stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import TokenPruning, select_each
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_range


@register_method("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(TokenPruning):
    """DivPrune (arXiv 2503.02175): keep the image tokens that are least like each other.

    Acts on the image features before the language model; all images of a prompt are one pool. Chooses
    what the released code does; that numbers the positions of the kept tokens anew
    (`position_scheme="renumber"`), the default keeps them.

    Args:
        keep_ratio: share of the image tokens that stays, rounded to the nearest, in [0, 1], at least one
            token; 1 leaves the model
            as it is. The default is 56 of 576.
    """

    keep_ratio: float = 0.098

    info = MethodInfo(
        stage="pruning",
        changes="image tokens that are like others leave",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="released code",
        paper="2503.02175",
    )
    identity_parameters: ClassVar = {"keep_ratio": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("keep_ratio", self.keep_ratio, 0, 1)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None

        def select(sample: int, tokens: Tensor) -> Tensor:
            return diverse_subset(tokens, max(1, round(self.keep_ratio * len(tokens))))

        return select_each(context.layout, hidden_states, select)


def diverse_subset(tokens: Tensor, count: int) -> Tensor:
    """Greedy max-min subset under the cosine distance (arXiv 2503.02175, section 3).

    The first pick is the token that is farthest from its nearest neighbour; then always the one that is
    farthest from all picked so far. Ties go to the lowest index.

    Args:
        tokens: `(tokens, features)`.
        count: how many to pick, from 1 to the number of tokens.

    Returns:
        Indices of the picked tokens, ascending, `(count,)` int64.
    """
    directions = nn.functional.normalize(tokens.float(), dim=-1)
    distances = 1 - directions @ directions.T
    pick = distances.clone().fill_diagonal_(torch.inf).amin(dim=1).argmax()
    to_picked = distances[pick].index_fill(0, pick, -torch.inf)
    picks = [pick]
    for _ in range(count - 1):
        pick = to_picked.argmax()
        to_picked = torch.minimum(to_picked, distances[pick]).index_fill(0, pick, -torch.inf)
        picks.append(pick)
    return torch.stack(picks).sort().values
