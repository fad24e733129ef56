"""What all methods that drop image tokens share: positions, counting, choosing the best."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import PrunesTokens
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import PruneResult
from vlmfix.engine.stats import Sums
from vlmfix.errors import UnsupportedError
from vlmfix.inference.chat import question_start
from vlmfix.methods.base import Method
from vlmfix.methods.validation import check_choice
from vlmfix.models.image_grid.grids import ImageTokens
from vlmfix.models.profiles import Profile

POSITION_SCHEMES = ("original", "renumber")


@dataclass(frozen=True, kw_only=True)
class TokenPruning(Method, PrunesTokens, ABC):
    """Base of the methods that drop image tokens in the prefill; decoding never drops again.

    Layers after a pruning, and their caches, hold the kept tokens alone. With original positions the result
    equals masking the dropped keys in those layers. A prompt that ends with its image is left as it is: its
    last token must stay, and no word can rate the others.

    Args:
        position_scheme: "original" keeps the positions of the tokens; "renumber" counts anew over those that
            are kept, as several published codes do, and is refused for models with positions in three axes.
    """

    position_scheme: str = "original"

    prunes_after: ClassVar[bool] = False
    """Whether a listed layer still runs on all tokens; published mean counts take it as pruned already."""

    def __post_init__(self) -> None:
        check_choice("position_scheme", self.position_scheme, POSITION_SCHEMES)

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
        if self.position_scheme == "renumber" and "mrope_section" in rope:
            raise UnsupportedError(
                "position_scheme 'renumber' is not defined for models with positions in three axes (M-RoPE); "
                "use 'original'"
            )
        return self

    def asking_text(self, context: DecodeContext, layer: int) -> Tensor:
        """The text after the last image that asks, among the tokens of a layer, `(batch, tokens)` bool: of a
        chat, the last user's turn and what the template writes after it, which the processor tells; without
        one, all text there."""
        key = self, "asking"
        if key not in context.state:
            context.state[key] = _asking(context)
        return context.layout_at(layer).gather(context.state[key])

    @abstractmethod
    def choose(
        self, context: DecodeContext, layer: int, hidden_states: Tensor
    ) -> Tensor | PruneResult | None:
        """Which tokens go on to a layer: a mask `(batch, tokens)` bool, or with merged ones; None: all.

        Text and padding may be either in the mask; they always go on.
        """

    def begin(self, context: DecodeContext) -> None:
        layout = context.layout
        ends_with_image = layout.image_tokens.any(dim=1) & ~layout.after_last_image.any(dim=1)
        context.decline(self, "no text after the image", ends_with_image)
        if self in context.declined and not bool(self.takes(context).any()):
            context.state[self, "declines all"] = True

    def prune(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        layout = context.layout_at(layer)
        if not layout.has_image or (self, "declines all") in context.state:
            return None
        chosen = self.choose(context, layer, hidden_states)
        if chosen is None:
            return None
        kept = chosen if isinstance(chosen, PruneResult) else PruneResult(chosen)
        mask = kept.mask.to(layout.image_tokens.device)
        if self in context.declined:
            takes = self.takes(context)
            mask = mask | ~takes[:, None]
            if kept.hidden_states is not None:
                taken = takes.to(hidden_states.device)[:, None, None]
                kept = kept._replace(hidden_states=torch.where(taken, kept.hidden_states, hidden_states))
        dropped = (layout.image_tokens & ~mask).sum(dim=1)
        eligible = 0 if context.pruning_stages else layout.image_tokens.sum(dim=1)
        context.count(self, layer, dropped, eligible)
        return kept._replace(mask=mask | ~layout.image_tokens, renumbered=self.position_scheme == "renumber")

    def inactive_reason(self, context: DecodeContext) -> str:
        return "the budget is not below the number of image tokens; lower it"

    def report(self, context: DecodeContext, sums: Sums) -> None:
        """The schedule in image tokens, and its mean over the layers; of samples that it takes."""
        taken = self.takes(context)
        if not bool(taken.any()):
            return
        counts = context.layout.image_tokens.sum(dim=1)[taken].float()
        layers = [stage.first_layer - self.prunes_after for stage in context.pruning_stages]
        kept = [stage.layout.image_tokens.sum(dim=1)[taken].float() for stage in context.pruning_stages]
        means = sum(
            size * (end - start)
            for size, start, end in zip(
                [counts, *kept], [0, *layers], [*layers, context.num_layers], strict=True
            )
        )
        assert isinstance(means, Tensor)
        sums.size = float(means.sum()) / context.num_layers
        sums.size_count = len(counts)
        sums.details = {
            "size": "image tokens per layer",
            "image tokens": float(counts.mean()),
            "schedule": [
                {
                    ("after layer" if self.prunes_after else "before layer"): layer,
                    "image tokens": float(left.mean()),
                }
                for layer, left in zip(layers, kept, strict=True)
            ],
        }


@dataclass(frozen=True, kw_only=True)
class CountedPruning(TokenPruning):
    """Base of the methods before the language model that are told how many image tokens stay.

    Args:
        kept_tokens: image tokens that stay, 1 or more; prompts with no more of them keep them all. None
            leaves the model as it is.
    """

    kept_tokens: int | None = 64

    identity_parameters: ClassVar = {"kept_tokens": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept_tokens is not None and (type(self.kept_tokens) is not int or self.kept_tokens < 1):
            raise ValueError(
                f"kept_tokens is {self.kept_tokens!r}; it must be a number of tokens, 1 or more, or None for "
                "all"
            )


def keep_top(scores: Tensor, candidates: Tensor, counts: Tensor | int) -> Tensor:
    """The best candidates and everything that is none.

    Args:
        scores: higher is better, `(batch, tokens)`; of equal ones the first wins.
        candidates: tokens that may be dropped, `(batch, tokens)` bool.
        counts: how many candidates stay, one for all samples or `(batch,)`.

    Returns:
        `(batch, tokens)` bool.
    """
    order = scores.masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    limits = counts[:, None] if isinstance(counts, Tensor) else counts
    return ~candidates | (ranks < limits)


def select_each(
    layout: PromptLayout, hidden_states: Tensor, select: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Choose among the image tokens of one sample after the other.

    Args:
        hidden_states: `(batch, tokens, hidden)`.
        select: from the number of a sample and its image tokens `(tokens, hidden)`, those to keep: indices or
            `(tokens,)` bool.

    Returns:
        `(batch, tokens)` bool; True at everything that is no image token.
    """
    mask = ~layout.image_tokens.to(hidden_states.device)
    for sample, image_tokens in enumerate(layout.image_tokens.to(hidden_states.device)):
        places = image_tokens.nonzero().squeeze(1)
        if len(places):
            mask[sample, places[select(sample, hidden_states[sample, places])]] = True
    return mask


def proportional_shares(sizes: Sequence[int], count: int) -> list[int]:
    """A budget shared by blocks in proportion to their tokens, by rounding its running sum.

    Args:
        sizes: tokens of each block.
        count: the budget; all tokens if there are fewer.

    Returns:
        Tokens for each block, no more than it has; together the budget.
    """
    total = sum(sizes)
    count = min(count, total)
    ends = [(2 * seen * count + total) // (2 * total) if total else 0 for seen in accumulate(sizes)]
    return [end - start for start, end in pairwise([0, *ends])]


def image_blocks(images: Sequence[ImageTokens]) -> list[Tensor]:
    """Offsets of the tokens of each block among the image tokens of a prompt, `(rows, columns)` each."""
    starts = accumulate((image.count for image in images), initial=0)
    return [
        start + grid.offsets() for start, image in zip(starts, images, strict=False) for grid in image.grids
    ]


def mean_tokens(
    tokens: float, num_layers: int, prune_layers: Sequence[int], kept_tokens: Sequence[float]
) -> float:
    """Mean number of image tokens per layer of a schedule, a listed layer counted at its size after pruning.

    Args:
        tokens: image tokens of the prompt.
        num_layers: decoder layers.
        prune_layers: ascending.
        kept_tokens: image tokens left from each of these layers on.
    """
    sizes, starts = [tokens, *kept_tokens], [0, *prune_layers, num_layers]
    return (
        sum(size * (end - start) for size, start, end in zip(sizes, starts, starts[1:], strict=False))
        / num_layers
    )


def as_stages(values: Any) -> tuple[Any, ...]:
    """The values of a schedule as a tuple; a single one may stand alone."""
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes | dict)
    return tuple(values) if several else (values,)


def stage_layers(values: Any) -> tuple[int, ...]:
    """The layers of a schedule as a tuple; a single one may stand alone.

    Raises:
        ValueError: they are no layer indices, or not in ascending order.
    """
    layers = as_stages(values)
    if any(type(layer) is not int or layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
        raise ValueError(
            f"prune_layers is {values!r}; it must hold layer indices, 0 or more, in ascending order"
        )
    return layers


def check_stages(layers: tuple[int, ...], name: str, values: tuple[Any, ...]) -> None:
    """Refuse a schedule without exactly one value for each of its layers.

    Raises:
        ValueError: naming the values and the layers.
    """
    if len(layers) != len(values):
        raise ValueError(
            f"{name} is {values!r}; it must hold one value for each of the prune_layers {layers!r}"
        )


def _asking(context: DecodeContext) -> Tensor:
    """`TokenPruning.asking_text` over the whole prompt."""
    layout, ids = context.layout, context.prompt_ids
    after = layout.after_last_image
    if context.processor is None or ids is None or not layout.has_image:
        return after
    if context.video_tokens is not None:
        ids = ids.masked_fill(context.video_tokens.to(ids.device), context.image_token)
    firsts: dict[tuple[int, ...], int] = {}
    found = []
    padding = layout.real_tokens.int().argmax(dim=1).tolist()
    for row, start in zip(ids.tolist(), padding, strict=True):
        prompt = tuple(row[start:])
        if prompt not in firsts:  # beams share their prompt
            try:
                firsts[prompt] = question_start(prompt, context.image_token, context.processor)
            except UnsupportedError:  # a prompt in another form than that of the template
                firsts[prompt] = 0
        found.append(start + firsts[prompt])
    positions = torch.arange(layout.length, device=after.device)
    return after & (positions >= torch.tensor(found, device=after.device)[:, None])
