"""Edits that change nothing: under each of them a model must say what it says without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmfix.engine.capabilities import AddsAuxiliaryPrompt, PrunesTokens, ReadsEarlyExits, ReadsLastRowAgain
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.state import AuxiliaryPrompt, Branch, PruneResult
from vlmfix.methods.logits.branch_prompts import shown_images, unchanged, with_other_images, without_image


@dataclass(frozen=True, kw_only=True)
class _Identity(MethodHooks):
    """What they have in common: no count of edits, and prompts without images are theirs, too."""

    edits = False
    needs_image = False


@dataclass(frozen=True, kw_only=True)
class ExplicitRows(_Identity):
    """All rows of all layers are computed explicitly, and every weight moves by one rounding."""

    def rows(self, context: DecodeContext, layer: int) -> Rows:
        key = (self, layer)
        if key not in context.state:
            context.state[key] = Rows.where(context.layout_at(layer).real_tokens)
        rows: Rows = context.state[key]
        return rows

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        return weights.nextafter(torch.ones_like(weights))


@dataclass(frozen=True, kw_only=True)
class Heads(_Identity):
    """Outputs of heads go through a hook."""

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        return heads.clone()


@dataclass(frozen=True, kw_only=True)
class _InPlaceOfLogits(_Identity):
    """The logits of a branch take the place of those of the prompt."""

    fused: bool = True

    def edit_logits(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return branches[0]


@dataclass(frozen=True, kw_only=True)
class SamePrompt(_InPlaceOfLogits):
    """A branch reads the prompt as it is."""

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> list[Branch]:
        return [unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused)]


@dataclass(frozen=True, kw_only=True)
class SameImages(_InPlaceOfLogits):
    """A branch reads the prompt with its own images encoded anew."""

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> list[Branch]:
        images = shown_images(context, type(self).__name__, in_rows=True)
        return [with_other_images(context, images, inputs_embeds, decoder_inputs, fused=self.fused)]


@dataclass(frozen=True, kw_only=True)
class NoImage(_InPlaceOfLogits):
    """A branch reads the prompt without its images."""

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> list[Branch]:
        return [without_image(context, self, inputs_embeds, decoder_inputs, fused=self.fused)]


@dataclass(frozen=True, kw_only=True)
class PrunedOfNothing(_Identity, PrunesTokens):
    """A pruning keeps all tokens from the second layer on."""

    def prune(self, context: DecodeContext, layer: int, hidden_states: Tensor) -> PruneResult | None:
        return PruneResult(context.layout.real_tokens) if layer == 1 else None


@dataclass(frozen=True, kw_only=True)
class SecondPrompt(_Identity, AddsAuxiliaryPrompt):
    """The prompt is read once more after itself, and neither sees the other."""

    def auxiliary_prompt(self, context: DecodeContext, inputs_embeds: Tensor) -> AuxiliaryPrompt:
        return AuxiliaryPrompt(inputs_embeds, context.layout.real_tokens, context.layout.seen)


@dataclass(frozen=True, kw_only=True)
class LastRowAgain(_Identity, ReadsLastRowAgain):
    """The last row of the prompt is read again."""

    def reads_last_row_again(self, context: DecodeContext) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class OwnExit(_InPlaceOfLogits, ReadsEarlyExits):
    """The head reads the last hidden state a second time."""

    def tapped_layers(self, context: DecodeContext) -> Sequence[int]:
        return ()

    def extra_hidden_states(self, context: DecodeContext, hidden_states: Tensor) -> Sequence[Tensor]:
        return [hidden_states]

    @property
    def needs_final_norm(self) -> bool:
        return False
