"""ACT: attention that sinks collect, handed to the other tokens of the row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vlmfix.engine.capabilities import PreviewsWeights
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout, Rows
from vlmfix.engine.stats import Sums
from vlmfix.methods.attention.base import head_pairs
from vlmfix.methods.base import Method, MethodInfo
from vlmfix.methods.registry import register_method
from vlmfix.methods.search_space import Between
from vlmfix.methods.validation import check_choice, check_flag, check_range, check_whole
from vlmfix.models.profiles import Profile

# Generated keys for which the sinks get room at a time.
_ROOM = 256


@register_method("act")
@dataclass(frozen=True, kw_only=True)
class ACT(Method, PreviewsWeights):
    """Attention Calibration Technique (arXiv 2406.15765), built for language models without images.

    A token other than the first is a sink of a head where the rows of the prompt that see it give it much
    attention on average. In chosen heads, sinks keep a share of their attention in every row of the prompt
    and in new rows, and all other tokens, the first included, get the rest in proportion to what they have.

    No setting is published for vision-language models. Reconstructed: heads are chosen by 'vlmfix calibrate',
    and rows that are read on a cache take the sinks of the prompt; the released code is broken there. Its
    scripts take a constant threshold, which is that of the paper for a prompt of 50 tokens.

    Args:
        sink_keep_fraction: share of its attention that a sink keeps, in [0, 1]; 1 leaves the model as it is.
        sink_rule: "relative": a sink gets more than `sink_ratio` divided by the number of tokens, as in the
            paper; "absolute": more than `sink_absolute_threshold`, as in the released code.
        sink_ratio: 0 or more.
        sink_absolute_threshold: in [0, 1].
        decode_sinks: of new rows: those of the "prefill", or the tokens to which the "row" itself gives so
            much.
        heads: pairs of layer and head, 0-based, or "all"; None: from the checkpoint's profile.
        first_layer: first layer of the heads.
        last_layer: last one; None: the last but one of the model.
        image_tokens_may_be_sinks: whether image tokens lose attention, too.
    """

    sink_keep_fraction: float = 0.4
    sink_rule: str = "relative"
    sink_ratio: float = 5.0
    sink_absolute_threshold: float = 0.1
    decode_sinks: str = "prefill"
    # Not hashed, which would take time in every step: a method is a key of its state.
    heads: tuple[tuple[int, int], ...] | str | None = field(default=None, hash=False)
    first_layer: int = 2
    last_layer: int | None = None
    image_tokens_may_be_sinks: bool = True

    info = MethodInfo(
        stage="attention",
        changes="weights of listed heads: from sinks to all other tokens",
        where="all rows; heads of the profile, layers 2 to last but one",
        forwards=1.0,
        provenance="reconstruction",
        paper="2406.15765",
    )
    identity_parameters: ClassVar = {"sink_keep_fraction": 1}
    search_space: ClassVar = {"sink_keep_fraction": Between(0, 0.9), "sink_ratio": Between(2, 10)}

    def __post_init__(self) -> None:
        check_range("sink_keep_fraction", self.sink_keep_fraction, 0, 1)
        check_choice("sink_rule", self.sink_rule, ("relative", "absolute"))
        check_range("sink_ratio", self.sink_ratio, 0, 1e6)
        check_range("sink_absolute_threshold", self.sink_absolute_threshold, 0, 1)
        check_choice("decode_sinks", self.decode_sinks, ("prefill", "row"))
        if self.heads not in (None, "all"):
            object.__setattr__(self, "heads", head_pairs(self.heads))
        check_whole("first_layer", self.first_layer, 0)
        if self.last_layer is not None:
            check_whole("last_layer", self.last_layer, self.first_layer)
        check_flag("image_tokens_may_be_sinks", self.image_tokens_may_be_sinks)

    @property
    def is_identity(self) -> bool:
        return self.sink_keep_fraction == 1 or self.heads == ()

    def resolve(self, config: PreTrainedConfig, profile: Profile | None) -> Self:
        text = config.get_text_config()
        last = max(0, text.num_hidden_layers - 2) if self.last_layer is None else self.last_layer
        if last >= text.num_hidden_layers or self.first_layer > last:
            raise ValueError(
                f"first_layer is {self.first_layer} and last_layer {last}; the layers of this model go from "
                f"0 to {text.num_hidden_layers - 1}, and the first must not come after the last"
            )
        heads = self.heads
        if heads is None and profile is not None:
            heads = profile.get("act_heads")
        if heads is None:
            raise ValueError(
                "no heads are known whose sinks hurt in this checkpoint, none are published for models with "
                "images; find them with 'vlmfix calibrate --model MODEL --method act --images FOLDER', or "
                "pass heads=((layer, head), ...) or heads='all'"
            )
        if heads != "all":
            heads = head_pairs(heads)
            for layer, head in heads:
                if not self.first_layer <= layer <= last or head >= text.num_attention_heads:
                    raise ValueError(
                        f"heads has {(layer, head)}; layers are edited from first_layer={self.first_layer} "
                        f"to last_layer={last}, and heads go from 0 to {text.num_attention_heads - 1}"
                    )
        return dataclasses.replace(self, heads=heads, last_layer=last)

    def begin(self, context: DecodeContext) -> None:
        layers = [layer for layer in range(context.num_layers) if self._acts(layer)]
        context.check_attention(type(self).__name__, layers, all_of_them=self.heads != "all")

    def edit_sites(self, layer: int, heads: int) -> int:
        return heads if self.heads == "all" else len(self._heads_of(layer))

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        layout = context.layout_at(layer)
        return layout.all_rows if context.layout.has_image and self._acts(layer) else None

    def preview(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
        key = (self, layer, "received")
        received = self._chosen(context, layer, weights).sum(dim=2)
        context.state[key] = context.state.get(key, 0) + received

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        own = self._chosen(context, layer, weights)
        edited, taken = spread_sinks(
            own, self._sinks_of_rows(context, layer, own), sink_keep_fraction=self.sink_keep_fraction
        )
        if context.has_newest_row:
            context.measure(self, size=taken[:, :, -1, 0])
        if self.heads == "all":
            return edited
        return weights.index_copy(1, context.state[self, layer, weights.device][0], edited)

    def report(self, context: DecodeContext, sums: Sums) -> None:
        counts = [
            sinks.float()[self.takes(context).to(sinks.device)].sum(dim=-1).mean()
            for key, sinks in context.state.items()
            if isinstance(key, tuple) and key[0] is self and key[-1] == "sinks"
        ]
        if sums.size_count and counts:
            mean = sum(map(float, counts)) / len(counts)
            sums.details = {
                "size": "attention that leaves sinks in a chosen head and row",
                "sinks": round(mean, 2),
            }

    def inactive_reason(self, context: DecodeContext) -> str:
        if self.sink_rule == "absolute":
            return (
                f"no token but the first gets a mean attention above {self.sink_absolute_threshold:g} in the "
                "chosen heads; lower sink_absolute_threshold, or choose other heads"
            )
        return (
            f"no token but the first gets {self.sink_ratio:g} times its share of the attention in the chosen "
            "heads; lower sink_ratio, or choose other heads"
        )

    def _acts(self, layer: int) -> bool:
        assert self.last_layer is not None
        is_inside = self.first_layer <= layer <= self.last_layer
        return is_inside and (self.heads == "all" or bool(self._heads_of(layer)))

    def _heads_of(self, layer: int) -> list[int]:
        assert isinstance(self.heads, tuple)
        return [head for each, head in self.heads if each == layer]

    def _chosen(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        """Weights of the chosen heads."""
        if self.heads == "all":
            return weights
        key = (self, layer, weights.device)
        if key not in context.state:  # the same in all sequences
            context.state[key] = torch.tensor([self._heads_of(layer)], device=weights.device)
        return weights.index_select(1, context.state[key][0])

    def _sinks_of_rows(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        """Sinks among the keys of some rows, `(batch, heads, rows or 1, keys)` bool."""
        layout, keys, key = context.layout_at(layer), weights.shape[-1], (self, layer, "sinks")
        if key not in context.state:
            context.state[key] = self._find(context, layout, context.state.pop((self, layer, "received")))
        sinks: Tensor = context.state[key]
        if sinks.shape[-1] < keys:
            sinks = context.state[key] = nn.functional.pad(sinks, (0, _ROOM))
        sinks = sinks[:, :, None, :keys]
        if self.decode_sinks == "prefill" or context.is_prefill:
            return sinks
        positions = context.row_positions
        if positions is None:
            if context.step == 0:  # the last row of the prompt is read again
                return sinks
            positions = torch.full((1,), keys - 1, device=weights.device)
        seen = layout.real_tokens.sum(dim=1).to(weights.device)[:, None] + positions + 1 - layout.length
        may_be = layout.over_keys(self._candidates(context, layout), keys, generated=self.takes(context))
        own = (weights > self._least(seen[:, None, :, None])) & may_be.to(weights.device)[:, None, None]
        return torch.where((positions >= layout.length)[:, None], own, sinks)

    def _find(self, context: DecodeContext, layout: PromptLayout, received: Tensor) -> Tensor:
        """Sinks of the prompt, `(batch, heads, tokens)` bool."""
        real = layout.real_tokens
        if layout.seen is None:
            seers = real.sum(dim=1, keepdim=True) - layout.counted_positions
        else:
            seers = (layout.seen & real[:, :, None]).sum(dim=1)
        candidates, device = self._candidates(context, layout), received.device
        least = self._least(real.sum(dim=1).to(device)[:, None, None])
        return find_sinks(received, seers.to(device)[:, None], candidates.to(device)[:, None], least)

    def _least(self, tokens: Tensor) -> Tensor | float:
        """The attention above which one of so many tokens is a sink."""
        return self.sink_absolute_threshold if self.sink_rule == "absolute" else self.sink_ratio / tokens

    def _candidates(self, context: DecodeContext, layout: PromptLayout) -> Tensor:
        """Tokens of the prompt that may be sinks, `(batch, tokens)` bool: not the first."""
        may_be = layout.real_tokens & (layout.counted_positions > 0) & self.takes(context)[:, None]
        return may_be if self.image_tokens_may_be_sinks else may_be & ~layout.image_tokens


def find_sinks(received: Tensor, seers: Tensor, candidates: Tensor, least: Tensor | float) -> Tensor:
    """Tokens that get more than so much attention on average of the rows that see them (arXiv 2406.15765).

    Args:
        received: sum over the rows of a prompt, `(..., tokens)`.
        seers: number of rows that see each token.
        candidates: tokens that may be sinks, bool.
        least: the attention that a sink must exceed.
    """
    return (received / seers.clamp_min(1) > least) & candidates


def spread_sinks(weights: Tensor, sinks: Tensor, *, sink_keep_fraction: float) -> tuple[Tensor, Tensor]:
    """Take attention from sinks, and give it to all other tokens in proportion (arXiv 2406.15765).

    Args:
        weights: after the softmax, `(batch, heads, rows, keys)`.
        sinks: `(batch, heads, rows or 1, keys)` bool.
        sink_keep_fraction: share that sinks keep, in [0, 1].

    Returns:
        Weights with the same sums, unchanged to the bit in rows without attention to a sink, or to anything
        else; and what was taken, `(batch, heads, rows, 1)`.
    """
    on_sinks = weights * sinks
    others = weights - on_sinks
    taken = (1 - sink_keep_fraction) * on_sinks.sum(dim=-1, keepdim=True)
    rest = others.sum(dim=-1, keepdim=True)
    taken = torch.where(rest > 0, taken, 0.0)
    edited = torch.addcmul(others, others, taken / rest.clamp_min(1e-30))
    return torch.where(taken > 0, edited + sink_keep_fraction * on_sinks, weights), taken
