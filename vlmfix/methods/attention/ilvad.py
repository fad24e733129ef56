"""ILVAD: attention to the image tokens that some layers light up and others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vlmfix.engine.capabilities import ReadsLastRowAgain, RemembersSequences, WritesAhead
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.state import Branch
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import LayerRange
from vlmfix.methods.attention.evidence import evidence_map, evidence_of_rows, reweigh, text_factors
from vlmfix.methods.base import MethodInfo
from vlmfix.methods.logits.branch_prompts import unchanged
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_flag, check_range, check_whole


@register_method("ilvad")
@dataclass(frozen=True, kw_only=True)
class ILVAD(LayerRange, ReadsLastRowAgain, WritesAhead, RemembersSequences):
    """Inter-Layer Visual Attention Discrepancy (arXiv 2605.20965).

    The model first writes a few tokens without an edit. An image token counts as evidence as often as it
    becomes strongly attended from one layer to the next; sinks, which are so in all layers, do not count.
    In the last prompt row and in new rows, heads that look at evidence then have their weights on it
    multiplied by up to `exp(alpha)`, and heads that look at the text after the image have their weights there
    multiplied by `beta` to `1 + beta`, the more, the more that token itself looked at evidence. Weights of
    edited heads are brought back to a sum of 1. Prompts of which no image token counts are left as they are.

    Reconstructed: how much a token looked at evidence belongs to that token, and the newest one has what
    the one before it has; in the released code all new tokens have what belongs to the one before. The last
    prompt row knows this of all layers, where the code knows that of the layers up to its own.

    Args:
        alpha: strength on the image, in [0, 20]; 0 leaves the model as it is.
        beta: the least factor on text, in [0, 10]: 0.3 for captions, 1 for yes/no questions; None: the text
            is left as it is.
        tau: how many times the mean of a layer the attention to a strongly attended token is, in [0, 1000].
        probe_tokens: how many tokens are written first, from 2 on; the last of them is not looked at.
        head_share: share of the heads that are edited, in [0, 1]; one at least.
        evidence_filter: whether tokens count only if their mean over all layers is above that of all tokens,
            as in the released code.
        layers: see `LayerRange`.
    """

    alpha: float = 5.0
    beta: float | None = 0.3
    tau: float = 5.0
    probe_tokens: int = 10
    head_share: float = 0.5
    evidence_filter: bool = True

    info: ClassVar = MethodInfo(
        stage="attention",
        changes="weights: to image tokens that count as evidence, and to text that looked at them",
        where="last prompt row and new rows; layers 5 to 25 of 32",
        forwards=1.0,
        provenance="reconstruction",
        paper="2605.20965",
    )
    identity_parameters: ClassVar = {"alpha": 0}
    search_space: ClassVar = {"alpha": Between(1, 8), "beta": Between(0.1, 1.5), "tau": Between(2, 10)}
    keeps_prefix: ClassVar = True
    published_layers: ClassVar = (5, 26)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 20)
        if self.beta is not None:
            check_range("beta", self.beta, 0, 10)
        check_range("tau", self.tau, 0, 1000)
        check_whole("probe_tokens", self.probe_tokens, 2)
        check_range("head_share", self.head_share, 0, 1)
        check_flag("evidence_filter", self.evidence_filter)

    def begin(self, context: DecodeContext) -> None:
        layers = [layer for layer in range(context.num_layers) if self.edits_layer(layer)]
        context.check_attention(type(self).__name__, layers)

    def write_ahead(
        self,
        context: DecodeContext,
        inputs_embeds: Tensor,
        decoder_inputs: Mapping[str, Any],
        write: Callable[[Branch, Tensor, int], list[list[int]]],
    ) -> None:
        image = context.layout.image_tokens
        if not context.layout.has_image:
            return
        sums: dict[int, Tensor] = {}
        counts: dict[int, Tensor] = {}

        def watch(layer: int, weights: Tensor, alive: Tensor) -> None:
            seen = weights[..., : image.shape[1]] * image.to(weights.device)[:, None]
            strong = seen.sum(dim=-1).topk(self._heads(seen), dim=1).indices
            row = seen.gather(1, strong[..., None].expand(-1, -1, seen.shape[-1])).mean(dim=1)
            sums[layer] = sums.get(layer, 0) + row * alive[:, None]
            counts[layer] = counts.get(layer, 0) + alive.long()[:, None]

        branch = unchanged(context, inputs_embeds, decoder_inputs, fused=False)
        branch.watch = watch
        write(branch, image.any(dim=1), self.probe_tokens)
        if not sums:
            context.decline(self, "the model writes nothing ahead", image.any(dim=1))
            context.state[self, "gain"] = torch.zeros(image.shape, device=image.device)
            return
        means = [(sums[each] / counts[each].clamp_min(1)).to(image.device) for each in sorted(sums)]
        found = evidence_map(torch.stack(means, dim=1), image, tau=self.tau, filtered=self.evidence_filter)
        without = image.any(dim=1) & ~(found > 0).any(dim=1)
        context.decline(self, "no image token counts as evidence", without)
        context.state[self, "gain"] = self.alpha * found

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        layout = context.layout_at(layer)
        if not context.layout.has_image or (self.beta is None and not self.edits_layer(layer)):
            return None
        if not context.is_prefill:
            return layout.last_row
        return None if self.beta is None else layout.rows_after_last_image

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return context.layout.has_image

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        layout, heads = context.layout_at(layer), self._heads(weights)
        _, gain, image, text = self._columns(context, layout, weights)
        chosen, looks = evidence_of_rows(weights, gain, image, heads=heads)
        if context.is_prefill:
            self._note_prompt(context, layout, looks)
            return weights
        factors = self._text_factors(context, layout, weights)
        if context.step and context.has_newest_row:
            newest = looks[:, -1].to(context.layout.image_tokens.device)
            context.memory[self, "newest"] = context.memory.get((self, "newest"), 0) + newest
        if not self.edits_layer(layer):
            return weights
        rows = self.takes(context).to(weights.device)[:, None, None]
        if context.row_positions is not None:
            rows = rows & (context.row_positions >= layout.length - 1)
        edited = reweigh(weights, gain, chosen, factors, text, rows, heads=heads)
        if context.has_newest_row:
            after, before = ((each[:, :, -1] * image[:, :, 0]).sum(dim=-1) for each in (edited, weights))
            context.measure(self, size=after, before=before)
        return edited

    def report(self, context: DecodeContext, sums: Sums) -> None:
        if sums.size_count:
            sums.details = {"size": "attention to the image in edited layers; 'before': without any edit"}

    def inactive_reason(self, context: DecodeContext) -> str:
        assert self.layers is not None
        if not any(context.layout_at(layer).has_image for layer in range(*self.layers)):
            return "no image token is left in the edited layers; choose earlier layers"
        return "its strength is too small to tell; raise alpha"

    def _heads(self, weights: Tensor) -> int:
        """How many heads are chosen of those of `(batch, heads, ...)` weights."""
        return max(1, int(weights.shape[1] * self.head_share))

    def _columns(self, context: DecodeContext, layout: PromptLayout, weights: Tensor) -> _Columns:
        """What it has to know of keys; worked out once a step."""
        key, keys = (self, layout, weights.device), weights.shape[-1]
        known = context.state.get(key)
        if known is None or known.step != context.step or known.gain.shape[-1] != keys:
            gain = layout.gather(context.state[self, "gain"])
            gain = nn.functional.pad(gain, (0, keys - gain.shape[1]))
            image = layout.over_keys(layout.image_tokens, keys)
            text = layout.over_keys(layout.after_last_image, keys, generated=self.takes(context))
            columns = (each.to(weights.device)[:, None, None] for each in (gain, image, text))
            known = context.state[key] = _Columns(context.step, *columns)
        return known

    def _note_prompt(self, context: DecodeContext, layout: PromptLayout, looks: Tensor) -> None:
        """Add what rows of the prompt looked at evidence in a layer, `(batch, rows)`."""
        assert context.row_positions is not None
        places = context.row_positions.to(layout.image_tokens.device)
        own = looks.to(places.device) * layout.after_last_image[:, places]
        whole = places.expand_as(own) if layout.positions is None else layout.positions[:, places]
        total = context.memory.get((self, "looks"))
        if total is None:
            total = own.new_zeros(context.layout.image_tokens.shape)
        context.memory[self, "looks"] = total.scatter_add(1, whole, own)

    def _text_factors(self, context: DecodeContext, layout: PromptLayout, weights: Tensor) -> Tensor | None:
        """Factors on text, `(batch, 1, rows, keys)`."""
        if self.beta is None:
            return None
        if context.state.get((self, "step")) != context.step:
            context.state[self, "step"] = context.step
            self._begin_step(context, self.beta)
        factors, length = context.memory[self, "factors"].to(weights.device), context.layout.length
        if context.row_positions is None:
            factors = factors[:, -1:]
        else:  # without a cache, rows read before are edited as they were
            factors = factors[:, (context.row_positions - layout.length + 1).clamp_min(0)]
        if layout.positions is not None:
            places = layout.positions.to(factors.device)[:, None].expand(-1, factors.shape[1], -1)
            factors = torch.cat([factors[..., :length].gather(2, places), factors[..., length:]], dim=2)
        return factors[:, None]

    def _begin_step(self, context: DecodeContext, beta: float) -> None:
        """Work out the factors on text in a step, of its prompt and of the tokens so far."""
        memory, layout = context.memory, context.layout
        looks = memory.get((self, "looks"))
        if looks is None:
            looks = torch.zeros(layout.image_tokens.shape, device=layout.image_tokens.device)
        if context.step > 1:
            looks = torch.cat([looks, memory.pop((self, "newest"))[:, None]], dim=1)
        memory[self, "looks"] = looks
        if context.step:  # what the newest token looks at is not known yet
            looks = torch.cat([looks, looks[:, -1:]], dim=1)
        text = layout.over_keys(layout.after_last_image, looks.shape[1], generated=self.takes(context))
        factors = text_factors(looks, text, beta=beta)[:, None]
        before = memory.get((self, "factors"))
        if before is not None and context.engine.cache is None:
            factors = torch.cat([nn.functional.pad(before, (0, 1), value=1.0), factors], dim=1)
        memory[self, "factors"] = factors


class _Columns(NamedTuple):
    """What is known of keys in a step, `(batch, 1, 1, keys)` each.

    Args:
        step: in which it was worked out.
        gain: what the logarithms of weights on image tokens gain.
        image: image tokens, bool.
        text: text after the image, bool.
    """

    step: int
    gain: Tensor
    image: Tensor
    text: Tensor
