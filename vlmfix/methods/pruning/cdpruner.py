"""CDPruner: image tokens that are unlike each other and fit the question stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlmfix.engine.context import DecodeContext
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.pruning.base import (
    CountedPruning,
    image_blocks,
    proportional_shares,
    select_each,
)
from vlmfix.methods.pruning.question_words import question_embeddings
from vlmfix.methods.registry import register_method
from vlmfix.methods.validation import check_choice, check_flag, check_range

# Below this share of the largest volume at the start a token adds nothing but rounding.
_EXHAUSTED = 1e-6
_HIGHEST_THETA = 0.99


@register_method("cdpruner")
@dataclass(frozen=True, kw_only=True)
class CDPruner(CountedPruning):
    """CDPruner (arXiv 2506.10967): the subset of image tokens with the largest conditional diversity.

    Acts on the image features before the language model. Each token weighs by its relevance to the question,
    and a greedy search finds tokens that span the largest volume: a determinantal point process. Images,
    frames of videos and the two views of LLaVA-NeXT are searched one by one and share the budget in
    proportion to their tokens; newline tokens leave.

    A reconstruction: the released code takes the relevance from the joint space of CLIP and its text encoder,
    which no LLaVA checkpoint holds, and negates it. Here it is the cosine of a token with the embeddings of
    the question's content words, in the language model, after what the paper does for models without CLIP.
    The search is that of the code; where the volume is exhausted, which makes NaN there, the most relevant
    tokens follow.

    Args:
        kept_tokens: image tokens that stay, 1 or more; prompts with no more of them keep them all. None
            leaves the model as it is.
        relevance: "embeddings" of the question; "none" weighs all tokens alike.
        relevance_sign: 1 prefers tokens like the question, -1 those unlike it.
        theta: weight of relevance against diversity in [0, 0.99], as an exponent; None: the plain product
            that the code runs.
        strip_suffix: leave sentences out of the question that ask for a form of answer.
    """

    relevance: str = "embeddings"
    relevance_sign: int = 1
    theta: float | None = None
    strip_suffix: bool = True

    info = MethodInfo(
        stage="pruning",
        changes="image tokens that are like others, or unlike the question, leave",
        where="prefill, before the language model",
        forwards=1.0,
        provenance="reconstruction",
        paper="2506.10967",
        decoding="greedy, sampling, beams, batches, with the processor",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("relevance", self.relevance, ("embeddings", "none"))
        if type(self.relevance_sign) is not int or self.relevance_sign not in (-1, 1):
            raise ValueError(f"relevance_sign is {self.relevance_sign!r}; it must be 1 or -1")
        if self.theta is not None:
            check_range("theta", self.theta, 0, _HIGHEST_THETA)
        check_flag("strip_suffix", self.strip_suffix)

    @property
    def needs_processor(self) -> bool:
        return self.relevance == "embeddings" and not self.is_identity

    def choose(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> Tensor | None:
        if layer != 0:
            return None
        asked = [hidden_states[0, :0]] * len(hidden_states)
        if self.relevance == "embeddings":
            asked = question_embeddings(
                context, hidden_states, content_only=True, strip_suffix=self.strip_suffix
            )

        def select(sample: int, tokens: Tensor) -> Tensor:
            assert self.kept_tokens is not None
            if self.kept_tokens >= len(tokens):
                return torch.ones_like(tokens[:, 0], dtype=torch.bool)
            blocks = [block.flatten().to(tokens.device) for block in image_blocks(context.images[sample])]
            shares = proportional_shares([len(block) for block in blocks], self.kept_tokens)
            picks = [tokens.new_empty(0, dtype=torch.long)]
            for block, share in zip(blocks, shares, strict=True):
                weights = quality(
                    relevance(tokens[block], asked[sample]) * self.relevance_sign, theta=self.theta
                )
                picks.append(block[conditional_subset(tokens[block], weights, share)])
            return torch.cat(picks)

        return select_each(context.layout, hidden_states, select)


def relevance(tokens: Tensor, words: Tensor) -> Tensor:
    """How like the words each token is: the mean of its cosines, `(tokens,)` float32; 0 without words.

    Args:
        tokens: `(tokens, features)`.
        words: `(words, features)`.
    """
    if not len(words):
        return torch.zeros_like(tokens[:, 0], dtype=torch.float32)
    tokens, words = (nn.functional.normalize(each.float(), dim=-1) for each in (tokens, words))
    return (tokens @ words.T).mean(dim=1)


def quality(relevance: Tensor, *, theta: float | None = None) -> Tensor:
    """Weights of the tokens of an image (arXiv 2506.10967, released code).

    Args:
        relevance: higher is more relevant, `(tokens,)`.
        theta: weight of relevance against diversity, in [0, 1); None: the plain product.

    Returns:
        `(tokens,)` float32, from about 0 to 1 or to its exponential; 1 where all are as relevant.
    """
    low, high = relevance.aminmax()
    scaled = (relevance - low + 1e-6) / (high - low)
    scaled = torch.where(high > low, scaled, 1.0)
    return scaled if theta is None else (theta / (2 * (1 - theta)) * scaled).exp()


def conditional_subset(tokens: Tensor, quality: Tensor, count: int) -> Tensor:
    """Greedy subset of the largest determinant of the weighted cosine kernel (arXiv 2506.10967, section 3).

    Args:
        tokens: `(tokens, features)`.
        quality: weights, `(tokens,)` float32.
        count: how many to pick, from 0 to the number of tokens.

    Returns:
        Indices in the order of the picks, `(count,)` int64: as far as the volume goes, then by quality; of
        equal ones the first.
    """
    directions = nn.functional.normalize(tokens.float(), dim=-1) * quality[:, None]
    kernel = directions @ directions.T
    # Not the diagonal of the kernel, whose rounding would decide between tokens of equal weight.
    gains = quality.square() * (directions != 0).any(dim=-1)
    floor = gains.amax() * _EXHAUSTED
    chosen = torch.zeros_like(gains, dtype=torch.bool)
    factors = gains.new_zeros(count, len(gains))
    picks = gains.new_empty(count, dtype=torch.long)
    for number in range(count):
        left = gains.masked_fill(chosen, -torch.inf)
        best = left.argmax()
        exhausted = left[best] <= floor
        pick = torch.where(exhausted, quality.masked_fill(chosen, -torch.inf).argmax(), best)
        before = factors[:number]
        factor = (kernel[pick] - before[:, pick] @ before) / gains[pick].clamp_min(floor).sqrt()
        factors[number] = factor.masked_fill(exhausted, 0.0)
        gains = gains - factors[number].square()
        chosen[pick] = True
        picks[number] = pick
    return picks
