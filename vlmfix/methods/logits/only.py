"""ONLY: a one-layer branch that hears the text, contrasted or added as the model agrees with it
(arXiv 2507.00898)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import ReadsEarlyExits, RunsLayerParts
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.stats import Sums
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.base import LogitsMixer, contrast, finite
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between, LayersBetween
from vlmfix.methods.validation import check_range, layer_indices
from vlmfix.models.profiles import Profile

# What the branch takes over of the stream that enters the last layer, and of the model's last hidden state.
_STREAM_SHARE, _FINAL_SHARE = 0.2, 0.5


@register_method("only")
@dataclass(frozen=True, kw_only=True)
class ONLY(LogitsMixer, ReadsEarlyExits, RunsLayerParts):
    """One-Layer Intervention (arXiv 2507.00898): a branch of the decoder that costs one attention row and one
    feed-forward part in place of a second pass.

    In one layer, the heads of the newest row that look at the text with more spread than at the image are
    kept, without their strongest weights. Their output skips all layers between and goes through the
    feed-forward part of the last one, together with shares of the model's own stream. Where the branch and
    the model agree, its logits are added, else the model moves away from them. This is the path of the
    released code; scripts set the threshold to 0.25 for captions and 0.2 for POPE.

    Args:
        alpha_agree: weight of the branch where the two agree, in [0, 100].
        alpha_differ: strength of the contrast where they differ, in [0, 100]; 0 for both leaves only the cut.
        threshold: sum of the differences of probabilities from which they differ, in [0, 2].
        layer: the layer of the branch, 0-based.
        beta: plausibility cut, see `LogitsMixer`.
    """

    alpha_agree: float = 3.0
    alpha_differ: float = 1.0
    threshold: float = 0.25
    layer: int = 0

    info: ClassVar = MethodInfo(
        stage="logits",
        changes="the logits of the text-bound heads of one layer are added or removed",
        where="every step",
        forwards=1.0,
        provenance="released code",
        paper="2507.00898",
        families="whose layers are a norm and attention, then a norm and a feed-forward part",
    )
    identity_parameters: ClassVar = {"alpha_agree": 0, "alpha_differ": 0, "beta": 0}
    search_space: ClassVar = {"threshold": Between(0.1, 1), "layer": LayersBetween(0, 3 / 4)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha_agree", self.alpha_agree, 0, 100)
        check_range("alpha_differ", self.alpha_differ, 0, 100)
        check_range("threshold", self.threshold, 0, 2)
        if type(self.layer) is not int:
            raise ValueError(f"layer is {self.layer!r}; it must be a layer index, 0 or more")
        layer_indices("layer", self.layer)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        depth = config.get_text_config().num_hidden_layers
        if self.layer >= depth:
            raise ValueError(f"layer is {self.layer}; the layers of this model go from 0 to {depth - 1}")
        return self

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        return (context.num_layers - 1,) if self._has_branch(context) else ()

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return (
            context.layout_at(layer).last_row if layer == self.layer and self._has_branch(context) else None
        )

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        assert context.attend is not None
        text, image = self._tokens(context.layout_at(layer), context, weights.shape[-1])
        newest = weights[:, :, -1]
        heads = TextHeads.of(newest, text.to(newest.device), image.to(newest.device))
        context.state[self] = context.attend(heads.weights[:, :, None])

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        if not self._has_branch(context):
            return ()
        assert context.modules is not None
        last = context.num_layers - 1
        stream = context.early_exits[last][:, None]
        branch = context.modules.input_norm(last, context.state[self])
        branch = context.modules.feed_forward(last, branch + _STREAM_SHARE * stream.to(branch.device))
        branch = context.modules.final_norm(branch)[:, 0]
        return [branch + _FINAL_SHARE * hidden_states.to(branch.device)]

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        if not branches:
            return logits
        agree = agreement(logits, branches[0], self.threshold)
        context.measure(self, size=agree.float())
        return mix_branch(
            logits, branches[0], agree, alpha_agree=self.alpha_agree, alpha_differ=self.alpha_differ
        )

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "share of the steps in which branch and model agree"}

    def _has_branch(self, context: DecodeContext) -> bool:
        return context.layout.has_image and (self.alpha_agree > 0 or self.alpha_differ > 0)

    def _tokens(self, layout: PromptLayout, context: DecodeContext, keys: int) -> tuple[Tensor, Tensor]:
        """Text and image among so many keys, `(batch, keys)` bool each; the first token is neither."""
        if (self, layout) not in context.state:
            text = layout.real_tokens & ~layout.image_tokens & (layout.real_tokens.cumsum(dim=1) > 1)
            context.state[self, layout] = text
        text = context.state[self, layout]
        return (
            layout.over_keys(text, keys, generated=torch.ones_like(context.alive)),
            layout.over_keys(layout.image_tokens, keys),
        )


class TextHeads(NamedTuple):
    """Heads that look at the text with more spread than at the image.

    Args:
        weights: without the strongest ones; 0 in heads that were not chosen, `(batch, heads, keys)`.
        ratios: entropy over the text by that over the image, `(batch, heads)`.
    """

    weights: Tensor
    ratios: Tensor

    @classmethod
    def of(cls, weights: Tensor, text_tokens: Tensor, image_tokens: Tensor) -> TextHeads:
        """Choose them (arXiv 2507.00898, released code).

        Args:
            weights: of one row, `(batch, heads, keys)`; keys of neither kind keep theirs.
            text_tokens: `(batch, keys)` bool.
            image_tokens: `(batch, keys)` bool.
        """
        text, image = text_tokens[:, None], image_tokens[:, None]
        strong = (text & (weights > _cut(weights, text))) | (image & (weights > _cut(weights, image)))
        left = weights.masked_fill(strong, 0.0)
        ratios = _entropy(left * text, empty=0.0) / _entropy(left * image, empty=torch.inf)
        chosen = ratios >= ratios.mean(dim=1, keepdim=True)
        return cls(left * chosen[..., None], ratios)


def agreement(logits: Tensor, branch: Tensor, threshold: float) -> Tensor:
    """Whether the probabilities differ by less than `threshold` in sum, `(batch, 1)` bool.

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the branch.
        threshold: in [0, 2].
    """
    difference = logits.softmax(dim=-1) - branch.softmax(dim=-1)
    return difference.abs().sum(dim=-1, keepdim=True) < threshold


def mix_branch(
    logits: Tensor, branch: Tensor, agree: Tensor, *, alpha_agree: float, alpha_differ: float
) -> Tensor:
    """The sum with the branch where it agrees, else the contrast with it (arXiv 2507.00898).

    Args:
        logits: of the prompts, `(batch, vocabulary)`.
        branch: of the branch.
        agree: `(batch, 1)` bool.
        alpha_agree: weight in the sum.
        alpha_differ: strength of the contrast.
    """
    return torch.where(agree, logits + alpha_agree * finite(branch), contrast(logits, branch, alpha_differ))


def _cut(weights: Tensor, tokens: Tensor) -> Tensor:
    """Mean and standard deviation of the weights on some keys, added, `(batch, heads, 1)`."""
    count = tokens.sum(dim=-1, keepdim=True)
    mean = (weights * tokens).sum(dim=-1, keepdim=True) / count.clamp_min(1)
    squares = ((weights - mean).square() * tokens).sum(dim=-1, keepdim=True)
    return mean + (squares / (count - 1).clamp_min(1)).sqrt()


def _entropy(weights: Tensor, *, empty: float) -> Tensor:
    """Entropy of the shares of weights, `(batch, heads)`; `empty` where all are 0."""
    total = weights.sum(dim=-1, keepdim=True)
    shares = weights / torch.where(total > 0, total, 1.0)
    entropy = -(shares * (shares + 1e-6).log()).sum(dim=-1)
    return torch.where(total[..., 0] > 0, entropy, empty)
