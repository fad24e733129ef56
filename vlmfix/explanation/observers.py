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
from vlmfix.explanation.formulas import ANSWER, FIRST, IMAGE, QUESTION, SINKS, SYSTEM, group_sums, image_entropy
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
    """The residual stream that enters a layer, at the first token and the image tokens.

    Args:
        first_score: largest RMS-normalised activation of the first token, and `dimension`, where it is.
        scores: the same of the image tokens, `(image tokens,)`.
        first_norm: L2 norm of the first token, `image_norm` the median of the image tokens.
    """

    first_score: float
    dimension: int
    scores: Tensor
    first_norm: float
    image_norm: float


def answer_rows(length: int, prompt: int, device: torch.device) -> Rows:
    """Rows that predict the tokens of an answer that is read with its prompt: one row before each.

    Args:
        length: tokens of prompt and answer.
        prompt: tokens of the prompt.
    """
    index = torch.arange(prompt - 1, length - 1, device=device)
    return Rows(index, torch.ones(1, len(index), dtype=torch.bool, device=device))


@dataclass(frozen=True, kw_only=True)
class AnswerObserver(Method):
    """Sees the attention of the rows that predict an answer, one prompt at a time.

    It works where prompt and answer are read in one pass, and where `generate` writes the answer; what it
    keeps grows with the answer times layers times image tokens, and not with the heads.

    Args:
        prompt: tokens of the prompt.
        sinks: which tokens count as sinks; None: none do.
        heads_at: number of the row of which the attention of each head to the image is kept; None: no row.
        sums: by layer, attention on the groups of keys, `(heads, rows, groups)` a step.
        maps: by layer, attention to the image tokens of the prompt, mean of the heads, `(rows, tokens)` a
            step; 0 where a method has dropped a token.
        entropies: by layer, entropy inside the image, `(heads, rows)` a step.
        of_heads: by layer, `(heads, tokens)` of the row of `heads_at`.
        streams: by layer.
    """

    edits: ClassVar = False

    prompt: int
    sinks: SinkRule | None = None
    heads_at: int | None = None
    sums: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)
    maps: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)
    entropies: dict[int, list[Tensor]] = field(default_factory=dict, compare=False)
    of_heads: dict[int, Tensor] = field(default_factory=dict, compare=False)
    streams: dict[int, Stream] = field(default_factory=dict, compare=False)

    def enter_layer(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> None:
        layout = context.layout_at(layer)
        image = layout.image_tokens[0].to(hidden_states.device)
        groups = _groups(layout, self.prompt).to(hidden_states.device)
        states = hidden_states[0].float()
        if self.sinks is not None:
            dimensions = self.sinks.dimensions or range(states.shape[-1])
            scores = sink_scores(states, dimensions)
            groups = torch.where(image & (scores > self.sinks.threshold), SINKS, groups)
            first, norms = int((groups == FIRST).nonzero()[0]), states.norm(dim=-1)
            self.streams[layer] = Stream(
                float(scores[first]),
                int(states[first].abs().argmax()),
                scores[image].cpu(),
                float(norms[first]),
                float(norms[image].median()) if bool(image.any()) else 0.0,
            )
        context.state[self, layer] = groups[None]

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        layout = context.layout_at(layer)
        if context.layout.length == self.prompt:
            return layout.last_row
        return answer_rows(layout.length, self.prompt, layout.image_tokens.device)

    def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        own, layout = weights[0], context.layout_at(layer)
        groups = context.state[self, layer][0].to(own.device)
        new = own.shape[-1] - len(groups)
        groups = torch.cat([groups, groups.new_full((new,), ANSWER)])
        image = layout.over_keys(layout.image_tokens, own.shape[-1])[0].to(own.device)
        on_image = own[..., image]
        step = sum(each.shape[1] for each in self.sums.get(layer, []))
        if self.heads_at is not None and step <= self.heads_at < step + own.shape[1]:
            self.of_heads[layer] = self._spread(context, layout, on_image[:, self.heads_at - step])
        self.sums.setdefault(layer, []).append(group_sums(own, groups).cpu())
        self.maps.setdefault(layer, []).append(self._spread(context, layout, on_image.mean(dim=0)))
        self.entropies.setdefault(layer, []).append(image_entropy(on_image).cpu())

    def _spread(self, context: DecodeContext, layout: PromptLayout, values: Tensor) -> Tensor:
        """Values of the image tokens that are present in a layer, as values of all of the prompt."""
        whole = context.layout.image_tokens[0]
        if layout.positions is None:
            return values.cpu()
        places = (whole.cumsum(0) - 1)[layout.positions[0][layout.image_tokens[0]]]
        spread = values.new_zeros(*values.shape[:-1], int(whole.sum()))
        return spread.index_copy(-1, places.to(values.device), values).cpu()


def _groups(layout: PromptLayout, prompt: int) -> Tensor:
    """Group of each of the tokens that are present in a layer, sinks not told apart, `(tokens,)` int64."""
    real, image = layout.real_tokens[0], layout.image_tokens[0]
    places = torch.arange(len(real), device=real.device) if layout.positions is None else layout.positions[0]
    groups = torch.full_like(places, SYSTEM)
    groups[layout.after_last_image[0]] = QUESTION
    groups[image] = IMAGE
    groups[places >= prompt] = ANSWER
    groups[int(real.int().argmax())] = FIRST
    return groups


@dataclass(frozen=True, kw_only=True)
class RolloutObserver(Method, PreviewsWeights):
    """Merges the heads of layers for the rollout (DecAF, arXiv 2510.19592), in a pass over prompt and answer.

    Heads are weighted by the rows of the prompt alone, so that one pass serves all words of the answer; for
    its first token that is the formula of the paper to the letter. Rows come in blocks, so that the weights
    of all heads are never held at once.

    Args:
        prompt: tokens of the prompt.
        first_layer: where the rollout begins.
        merged: by layer, `(tokens, tokens)` float32 on the CPU.
    """

    edits: ClassVar = False

    prompt: int
    first_layer: int
    merged: dict[int, Tensor] = field(default_factory=dict, compare=False)
    _looks: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    _blocks: dict[int, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout.all_rows if layer >= self.first_layer else None

    def preview(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        assert context.row_positions is not None
        of_prompt = context.row_positions < self.prompt
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
