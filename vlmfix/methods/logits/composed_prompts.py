"""The prompts of a batch composed anew, of some of their tokens and of other words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.engine.decoder_inputs import embedded_tokens, of_tokens, selected
from vlmfix.engine.layout import PromptLayout, pairs_at
from vlmfix.engine.state import Branch
from vlmfix.errors import UnsupportedError
from vlmfix.methods.logits.branch_prompts import unchanged


class Token(NamedTuple):
    """A token of a composed prompt: one that stood in a column of the prompt, or else a new one."""

    column: int = -1
    id: int = -1


class Replacement(NamedTuple):
    """Tokens of a prompt from column `start` up to `stop`, and those that stand there instead."""

    start: int
    stop: int
    ids: Sequence[int]


def rewritten(
    context: DecodeContext,
    inputs_embeds: Tensor,
    decoder_inputs: Mapping[str, Any],
    replacements: Sequence[Sequence[Replacement]],
    *,
    fused: bool,
) -> Branch:
    """The prompts with other words in some places, of any number; see `composed`.

    Args:
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        decoder_inputs: what else the text decoder was given.
        replacements: of each prompt, copies of it counted once; in order and apart.
        fused: see `Branch`.
    """
    real_tokens = context.layout.real_tokens[:: context.copies].tolist()
    prompts = [_replaced(*each) for each in zip(real_tokens, replacements, strict=True)]
    return composed(context, inputs_embeds, decoder_inputs, prompts, fused=fused)


def composed(
    context: DecodeContext,
    inputs_embeds: Tensor,
    decoder_inputs: Mapping[str, Any],
    prompts: Sequence[Sequence[Token]],
    *,
    fused: bool,
) -> Branch:
    """The prompts, composed anew. New words count on from the token before them, and what follows keeps its
    distance to images.

    Args:
        inputs_embeds: image features merged, `(batch, prompt, hidden)`.
        decoder_inputs: what else the text decoder was given.
        prompts: each one, copies of it counted once; where visual features are injected into layers, with
            all image tokens in their order, or none.
        fused: see `Branch`.

    Raises:
        UnsupportedError: some are new, and the text decoder reads more of each token than its embedding.
    """
    length = max(map(len, prompts))
    device = context.layout.real_tokens.device

    def padded(part: int) -> Tensor:
        """Columns or ids, `(batch, tokens)`."""
        rows = [[-1] * (length - len(own)) + [token[part] for token in own] for own in prompts]
        return torch.tensor(rows, device=device).repeat_interleave(context.copies, dim=0)

    columns, ids = padded(0), padded(1)
    kept, is_new = columns >= 0, ids >= 0
    old, real = columns.clamp_min(0), kept | is_new
    if embedded_tokens(decoder_inputs, inputs_embeds) and any(
        token.column < 0 for own in prompts for token in own
    ):
        raise UnsupportedError(
            "the text decoder of this model reads more of each token than its embedding, which new tokens of "
            "a branch lack; use a method that only leaves tokens out"
        )
    assert context.embed_tokens is not None
    with torch.no_grad():
        new = context.embed_tokens(ids.clamp_min(0)).to(inputs_embeds)
    hidden = old.to(new.device)[..., None].expand_as(new)
    embeddings = torch.where(kept.to(new.device)[..., None], inputs_embeds.gather(1, hidden), new)
    branch = Branch(embeddings, real, fused=fused, seen=_seen(context.layout, kept, real, old))
    whole = unchanged(context, inputs_embeds, decoder_inputs, fused=fused)
    if not bool((kept & context.layout.image_tokens.gather(1, old)).any()):
        tokens = embedded_tokens(decoder_inputs, inputs_embeds)
        branch.decoder_inputs = selected(tokens, old, kept)
        return branch
    if whole.position_ids is not None:
        branch.position_ids = _positions(context.layout, whole.position_ids, branch.layout, columns)
    tokens = of_tokens(whole.decoder_inputs, inputs_embeds)
    branch.decoder_inputs = {**whole.decoder_inputs, **selected(tokens, old, kept)}
    return branch


def _positions(layout: PromptLayout, given: Tensor, new: PromptLayout, columns: Tensor) -> Tensor:
    """Positions of composed prompts, `(..., batch, tokens)`.

    Args:
        layout: of the prompts.
        given: their positions, `(..., batch or 1, prompt)`.
        new: of the composed prompts.
        columns: where each of their tokens stood, `(batch, tokens)`; -1: it is new, or padding.
    """
    ahead = given - layout.counted_positions.to(given.device)
    columns = columns.to(given.device)
    kept = columns >= 0
    places = torch.arange(columns.shape[1], device=given.device).expand_as(columns)
    before = places.masked_fill(~kept, -1).cummax(dim=1).values
    start = layout.real_tokens.int().argmax(dim=1, keepdim=True).to(given.device)
    following = (columns.gather(1, before.clamp_min(0)) + 1).clamp_max(ahead.shape[-1] - 1)
    source = torch.where(kept, columns, torch.where(before >= 0, following, start))
    shifts = ahead.gather(-1, source.expand(*ahead.shape[:-1], -1))
    return new.counted_positions.to(given.device) + shifts


def _seen(layout: PromptLayout, kept: Tensor, real: Tensor, old: Tensor) -> Tensor | None:
    """Which tokens see which, where some are new; see `PromptLayout.seen`.

    Args:
        kept: those that are not new, `(batch, tokens)` bool.
        real: everything but padding, likewise.
        old: where the kept ones stood in the prompt, likewise int64.
    """
    if layout.seen is None:
        return None
    both = kept[:, :, None] & kept[:, None]
    plain = torch.ones_like(both) if layout.sees_ahead else torch.ones_like(both).tril()
    return torch.where(both, pairs_at(layout.seen, old), plain) & real[:, None]


def _replaced(real_tokens: Sequence[bool], replacements: Sequence[Replacement]) -> list[Token]:
    """The tokens of a prompt without padding, some replaced."""
    stays = list(real_tokens)
    added: dict[int, list[Token]] = {}
    for start, stop, ids in replacements:
        stays[start:stop] = [False] * (stop - start)
        added[start] = [Token(id=token) for token in ids]
    tokens: list[Token] = []
    for column, stay in enumerate(stays):
        tokens += added.get(column, []) + [Token(column)] * stay
    return tokens
