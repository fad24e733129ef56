"""What is watched while a model reads or writes an answer; nothing here changes what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vlmfix.engine.capabilities import PreviewsWeights
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.errors import UnsupportedError
from vlmfix.explanation.formulas import (
    ANSWER,
    FIRST,
    IMAGE,
    QUESTION,
    SINKS,
    SYSTEM,
    group_sums,
    image_entropy,
)
from vlmfix.explanation.rollout import head_looks, merged_heads
from vlmfix.methods.attention.var import sink_scores
from vlmfix.methods.attention.vhr import VHR, head_divergence
from vlmfix.methods.base import Method


class SinkRule(NamedTuple):
    """By what a token counts as an attention sink (arXiv 2503.03321).

    Args:
        threshold: of the RMS-normalised activation, exclusive.
        dimensions: of the residual stream that mark sinks; None: all of them, uncalibrated.
    """

    threshold: float
    dimensions: tuple[int, ...] | None


class Stream(NamedTuple):
    """The residual stream that enters a layer, at the first token and at the image tokens.

    Args:
        first: RMS-normalised sizes of the first token, `(hidden,)`.
        scores: sink scores of the image tokens, `(image tokens,)`.
        norms: L2 norm of the first token and median of the image tokens, `(2,)`.
    """

    first: Tensor
    scores: Tensor
    norms: Tensor


def answer_rows(length: int, prompt_length: int, device: torch.device) -> Rows:
    """Rows that predict the tokens of an answer that is read with its prompt: one row before each.

    Args:
        length: tokens of prompt and answer.
        prompt_length: tokens of the prompt.
    """
    index = torch.arange(prompt_length - 1, length - 1, device=device)
    return Rows(index, torch.ones(1, len(index), dtype=torch.bool, device=device))


class Seen(NamedTuple):
    """Attention of rows that predict an answer in one layer.

    Args:
        sums: on the groups of keys, `(heads, rows, groups)`.
        image: on the image tokens of the prompt, mean of the heads, `(rows, tokens)`; 0 where a method has
            dropped a token.
        entropy: inside the image, `(heads, rows)`, see `image_entropy`.
    """

    sums: Tensor
    image: Tensor
    entropy: Tensor


@dataclass(frozen=True, kw_only=True)
class AnswerObserver(Method):
    """Sees the attention of the rows that predict an answer, one prompt at a time.

    It works where prompt and answer are read in one pass, and where `generate` writes the answer; what it
    keeps grows with the answer times layers times image tokens, and not with the heads.

    Args:
        sinks: which tokens count as sinks.
        prompt_length: tokens of the prompt, where the answer is read with it; None: `generate` writes it.
        seen: by layer and step, one step where the answer is read with its prompt.
        streams: by layer.
    """

    edits: ClassVar = False

    sinks: SinkRule
    prompt_length: int | None = None
    seen: dict[int, dict[int, Seen]] = field(default_factory=dict, compare=False)
    streams: dict[int, Stream] = field(default_factory=dict, compare=False)

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        layout, states = context.layout_at(layer), hidden_states[0].float()
        groups, image, first = (each.to(states.device) for each in self._places(context, layout))
        scores = sink_scores(states, self.sinks.dimensions or range(states.shape[-1]))
        on_image = scores[image]
        groups = groups.index_copy(0, image, torch.where(on_image > self.sinks.threshold, SINKS, IMAGE))
        context.state[self, layer] = groups[None]
        norms = states.norm(dim=-1)
        of_image = norms[image].median() if len(image) else norms.new_zeros(())
        own = states[first[0]]
        self.streams[layer] = Stream(
            own.abs() * torch.rsqrt(own.square().mean() + 1e-6),
            on_image,
            torch.stack([norms[first[0]], of_image]),
        )

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        layout = context.layout_at(layer)
        if self.prompt_length is None:
            return layout.last_row
        return answer_rows(layout.length, self.prompt_length, layout.image_tokens.device)

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        if self.prompt_length is not None and context.layout.sees_ahead:
            raise UnsupportedError(
                "text of this model sees later text, so that an answer cannot be read again in one pass with "
                "its prompt; explain a model whose text is causal"
            )
        own, layout = weights[0], context.layout_at(layer)
        groups = context.state[self, layer][0].to(own.device)
        groups = torch.cat([groups, groups.new_full((own.shape[-1] - len(groups),), ANSWER)])
        on_image = own.index_select(-1, self._places(context, layout)[1].to(own.device))
        image = self._spread(context, layout, on_image.mean(dim=0))
        # A last prompt row that is read again takes the place of the first reading.
        self.seen.setdefault(layer, {})[context.step] = Seen(
            group_sums(own, groups), image, image_entropy(on_image)
        )

    def _places(self, context: DecodeContext, layout: PromptLayout) -> tuple[Tensor, Tensor, Tensor]:
        """Groups of the tokens, sinks not told apart, places of image tokens, and of the first token; once
        for all layers with the same tokens."""
        key = self, layout
        if key not in context.state:
            prompt_length = context.layout.length if self.prompt_length is None else self.prompt_length
            groups = _groups(layout, prompt_length)
            image = layout.image_tokens[0].nonzero()[:, 0]
            first = (groups == FIRST).nonzero()[:1, 0]
            context.state[key] = groups[None], image[None], first[None]
        groups, image, first = context.state[key]
        return groups[0], image[0], first[0]

    def _spread(self, context: DecodeContext, layout: PromptLayout, values: Tensor) -> Tensor:
        """Values of the image tokens that are present in a layer, as values of all of the prompt."""
        if layout.positions is None:
            return values
        whole = context.layout.image_tokens[0]
        places = (whole.cumsum(0) - 1)[layout.positions[0][layout.image_tokens[0]]]
        spread = values.new_zeros(*values.shape[:-1], int(whole.sum()))
        return spread.index_copy(-1, places.to(values.device), values)

    def collected(self) -> dict[int, Seen]:
        """What was seen, by layer, all steps in one, on the CPU."""
        return {
            layer: Seen(
                torch.cat([steps[step].sums for step in sorted(steps)], dim=1).cpu(),
                torch.cat([steps[step].image for step in sorted(steps)]).cpu(),
                torch.cat([steps[step].entropy for step in sorted(steps)], dim=1).cpu(),
            )
            for layer, steps in sorted(self.seen.items())
        }


@dataclass(frozen=True, kw_only=True)
class HeadObserver(Method):
    """Sees the attention of each head to the image in some rows, where an answer is read with its prompt.

    Args:
        places: of the rows among those that predict the answer.
        prompt_length: tokens of the prompt.
        seen: by layer, `(heads, rows, image tokens)` on the CPU.
    """

    edits: ClassVar = False

    places: tuple[int, ...]
    prompt_length: int
    seen: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        index = torch.tensor(self.places, device=context.layout.image_tokens.device) + self.prompt_length - 1
        return Rows(index, torch.ones(1, len(index), dtype=torch.bool, device=index.device))

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        image = context.layout.image_tokens[0].to(weights.device)
        self.seen[layer] = weights[0][..., image].cpu()


def _groups(layout: PromptLayout, prompt_length: int) -> Tensor:
    """Group of each of the tokens that are present in a layer, sinks not told apart, `(tokens,)` int64."""
    real, image = layout.real_tokens[0], layout.image_tokens[0]
    places = torch.arange(len(real), device=real.device) if layout.positions is None else layout.positions[0]
    groups = torch.full_like(places, SYSTEM)
    groups[layout.after_last_image[0]] = QUESTION
    groups[image] = IMAGE
    groups[places >= prompt_length] = ANSWER
    groups[real.int().argmax()] = FIRST
    return groups


@dataclass(frozen=True, kw_only=True)
class RolloutObserver(Method, PreviewsWeights):
    """Merges the heads of layers for the rollout (DecAF, arXiv 2510.19592), in a pass over prompt and answer.

    Heads are weighted by the rows of the prompt alone, so that one pass serves all words of the answer; for
    its first token that is the formula of the paper to the letter. Rows come in blocks, so that the weights
    of all heads are never held at once.

    Args:
        prompt_length: tokens of the prompt.
        first_layer: where the rollout begins.
        merged: by layer, `(tokens, tokens)` float32 on the CPU.
    """

    edits: ClassVar = False

    prompt_length: int
    first_layer: int
    merged: dict[int, Tensor] = field(default_factory=dict, compare=False)
    _looks: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    _blocks: dict[int, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout.all_rows if layer >= self.first_layer else None

    def preview(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        assert context.row_positions is not None
        of_prompt = context.row_positions < self.prompt_length
        if bool(of_prompt.any()):
            image = context.layout.image_tokens[0].to(weights.device)
            own = weights[0][:, of_prompt.to(weights.device)]
            sums = head_looks(own, image) * own.shape[1]
            self._looks[layer] = self._looks.get(layer, 0) + sums

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        if context.is_prefill and layer >= self.first_layer:
            looks = self._looks[layer] / self._looks[layer].max()
            self._blocks.setdefault(layer, []).append(merged_heads(weights[0], looks).cpu())
            if context.has_newest_row:
                self.merged[layer] = torch.cat(self._blocks.pop(layer))
        return weights

    @cached_property
    def layers(self) -> Sequence[Tensor]:
        """`merged` from the first layer to the last."""
        return [self.merged[layer] for layer in sorted(self.merged)]


@dataclass(frozen=True, kw_only=True)
class HeadDivergence(VHR):
    """Sees how far the image moves the output of each head at the last prompt row (VHD, arXiv 2412.13949).

    Args:
        found: by layer, `(heads,)`.
    """

    edits: ClassVar = False

    found: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        if self in context.auxiliary_prompts:
            text = context.auxiliary_tokens(self, heads.shape[1])
            with_image = heads[0, context.layout_at(layer).length - 1].float()
            self.found[layer] = head_divergence(with_image, heads[0, text][-1].float()).cpu()
        return heads
