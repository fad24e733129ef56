"""Random image tokens: the control that any informed selection must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import CountedPruning, select_each
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_whole


@register_method("random_tokens")
@dataclass(frozen=True, kw_only=True)
class RandomTokens(CountedPruning):
    """Random image tokens stay: a control, as in arXiv 2504.17892.

    Acts on the image features before the language model; all images of a prompt are one pool. The draw
    depends on the seed and on the token ids of the prompt, so that a batch keeps what its samples keep alone.

    Args:
        kept_tokens: image tokens that stay, 1 or more; prompts with no more of them keep them all. None
            leaves the model as it is.
        seed: of the draws.
    """

    seed: int = 0

    info = MethodInfo(
        stage="pruning",
        changes="all but random image tokens leave",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="paper",
        paper="2504.17892",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("seed", self.seed, 0, 2**63 - 1)

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None

        def select(sample: int, tokens: Tensor) -> Tensor:
            assert self.kept_tokens is not None
            seed = self.seed
            if context.prompt_ids is not None:
                ids = context.prompt_ids[
                    sample, context.layout.real_tokens[sample].to(context.prompt_ids.device)
                ]
                seed = item_seed(seed, ids.tolist())
            return random_subset(len(tokens), self.kept_tokens, seed=seed).to(tokens.device)

        return select_each(context.layout, hidden_states, select)


def random_subset(number: int, count: int, *, seed: int) -> Tensor:
    """`count` of the indices below `number`, uniformly without replacement, ascending; on the CPU.

    All of them if `count` is not below `number`.
    """
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def item_seed(seed: int, prompt_ids: Sequence[int]) -> int:
    """A seed of its own for each prompt, the same in every process."""
    digest = hashlib.sha256(repr((seed, *prompt_ids)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
