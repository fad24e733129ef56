"""Prompts that begin alike, up to their last image, read once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from vlmfix.engine import compatibility, kernels, tokens
from vlmfix.engine.caches import read_cache, with_cache, without_cache
from vlmfix.engine.callers import turns_of
from vlmfix.engine.decoder_inputs import extras
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import Prefix
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import new_cache, text_decoder

# What Qwen3-VL adds after its first layers, and where; the one kind of addition that is taken apart here.
_INJECTED = {"visual_pos_masks", "deepstack_visual_embeds"}


@contextmanager
def shared_prefix(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, `generate` reads what several prompts of a batch have in common only once.

    That is the text and images before the last image token; prompts are compared by value. The key and
    value cache is then the same as without, but for rounding. Methods that act there (`Method.keeps_prefix`),
    prompts without an image, caches other than the dynamic one and calls that want all hidden states read
    each prompt in full.

    Other threads read their prompts in full, and wait for the end of the block with blocks of their own.

    Args:
        model: an image-text-to-text model of transformers; it leaves the block as it entered.
    """
    model = compatibility.stock_model(model)
    with turns_of(model).block("vlmfix.generate"):
        yield from _sharing(model)


def _sharing(model: PreTrainedModel) -> Iterator[None]:
    decoder, thread = text_decoder(model), threading.get_ident()
    read = decoder.forward
    try:
        visual_tokens = tokens.visual_tokens(model.config)
    except UnsupportedError:  # no placeholders, up to which prompts could be alike
        yield
        return
    prompt_ids: Tensor | None = None

    def before_model(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal prompt_ids
        if threading.get_ident() != thread:
            return
        # Whoever asks for one row of logits, as `generate` does, will not miss the others.
        prompt_ids = kwargs.get("input_ids") if kwargs.get("logits_to_keep") == 1 else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        attachment = vars(decoder).get(kernels.ATTRIBUTE)
        context = None if attachment is None else attachment.context
        if threading.get_ident() != thread or (
            context is not None and context.engine.active_branch is not None
        ):
            return read(*args, **kwargs)
        if attachment is not None and not all(method.keeps_prefix for method in attachment.methods):
            return read(*args, **kwargs)
        batch = None if args else _Batch.of(kwargs, prompt_ids, visual_tokens)
        prefix = None if batch is None else batch.prefix()
        if batch is None or prefix is None:
            return read(*args, **kwargs)
        if context is not None:
            context.engine.prefix = prefix
        prefixes = new_cache(decoder)
        read(**with_cache(decoder, batch.prefixes(prefix), prefixes))
        prefix.is_read = True
        layers: list[Any] = prefixes.layers  # typed as their base class, without keys
        for layer, cached in enumerate(layers):
            key, value = (
                prefix.spread(each.transpose(1, 2)).transpose(1, 2) for each in (cached.keys, cached.values)
            )
            batch.cache.update(key, value, layer)
        try:
            return read(**with_cache(decoder, batch.rest(prefix), batch.cache))
        finally:
            if context is not None:
                context.engine.prefix = None

    attributes = vars(decoder)
    before = {name: attributes[name] for name in ("forward",) if name in attributes}
    handle = model.register_forward_pre_hook(before_model, with_kwargs=True)
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(before)
        handle.remove()


@dataclass(eq=False)
class _Batch:
    """The arguments of a pass of the decoder that reads whole prompts.

    Args:
        kwargs: of the decoder.
        cache: empty.
        real_tokens: `(batch, prompt)` bool.
        starts: column of the first token of each prompt.
        ends: column of the last image token of each prompt.
        positions: of the rotary embedding, `(..., batch, prompt)`.
    """

    kwargs: dict[str, Any]
    cache: DynamicCache
    real_tokens: Tensor
    starts: list[int]
    ends: list[int]
    positions: Tensor

    @classmethod
    def of(cls, kwargs: dict[str, Any], prompt_ids: Tensor | None, visual_tokens: list[int]) -> _Batch | None:
        """The pass, if prompts can share anything in it."""
        cache = read_cache(kwargs)
        embeddings, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        plain = (
            isinstance(cache, DynamicCache)
            and cache.get_seq_length() == 0
            and all(type(layer) is DynamicLayer for layer in cache.layers)
            and not set(extras(kwargs)) - _INJECTED
        )
        detailed = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        if prompt_ids is None or embeddings is None or not plain or detailed:
            return None
        if len(prompt_ids) < 2 or embeddings.shape[:2] != prompt_ids.shape:
            return None
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != prompt_ids.shape):
            return None
        real_tokens = torch.ones_like(prompt_ids, dtype=torch.bool) if mask is None else mask.bool()
        image_tokens = torch.isin(prompt_ids, prompt_ids.new_tensor(visual_tokens)) & real_tokens
        length = prompt_ids.shape[1]
        starts = real_tokens.int().argmax(dim=1)
        # Whether every prompt has an image, and padding on the left only.
        regular = image_tokens.any(dim=1) & (real_tokens.sum(dim=1) == length - starts)
        if not bool(regular.all()):
            return None
        ends = length - 1 - image_tokens.flip(1).int().argmax(dim=1)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=embeddings.device)[None]
        positions = positions.expand(*positions.shape[:-2], len(prompt_ids), length)
        return cls(kwargs, cache, real_tokens, starts.tolist(), ends.tolist(), positions)

    def prefix(self) -> Prefix | None:
        """What the prompts share; None: no two of them begin alike."""
        firsts: list[int] = []
        owner = []
        for row in range(len(self.starts)):
            known = next((number for number, first in enumerate(firsts) if self._alike(first, row)), None)
            if known is None:
                firsts.append(row)
            owner.append(len(firsts) - 1 if known is None else known)
        device = self.real_tokens.device
        starts, ends = (torch.tensor(each, device=device) for each in (self.starts, self.ends))
        first_rows = torch.tensor(firsts, device=device)
        lengths = (ends - starts)[first_rows]
        longest = int(lengths.max())
        if len(firsts) == len(owner) or min(self.ends) == 0 or longest == 0:
            return None
        columns = ends[first_rows, None] - longest + torch.arange(longest, device=device)
        real_tokens = columns >= starts[first_rows, None]
        layout = PromptLayout(torch.zeros_like(real_tokens), real_tokens, columns.clamp_min(0))
        owners = torch.tensor(owner, device=device)
        tokens = torch.arange(min(self.ends), device=device) - starts[:, None]
        places = (tokens + longest - lengths[owners, None]).clamp(0, longest - 1)
        return Prefix(layout, first_rows, owners, places)

    def _alike(self, first: int, row: int) -> bool:
        """Whether two prompts are the same up to their last image token."""
        spans = [slice(self.starts[each], self.ends[each]) for each in (first, row)]
        if spans[0].stop - spans[0].start != spans[1].stop - spans[1].start:
            return False
        embeddings = self.kwargs["inputs_embeds"]
        return torch.equal(embeddings[first, spans[0]], embeddings[row, spans[1]]) and torch.equal(
            self.positions[..., first, spans[0]], self.positions[..., row, spans[1]]
        )

    def prefixes(self, prefix: Prefix) -> dict[str, Any]:
        """Arguments of the pass over the beginnings."""
        columns = prefix.layout.positions
        assert columns is not None
        rows = prefix.first_rows[:, None].expand_as(columns)
        mask = prefix.layout.real_tokens.long() if prefix.layout.has_padding else None
        return self._part(rows, columns, prefix.layout.real_tokens, mask)

    def rest(self, prefix: Prefix) -> dict[str, Any]:
        """Arguments of the pass over what follows."""
        batch, length = self.real_tokens.shape
        columns = torch.arange(prefix.places.shape[1], length, device=self.real_tokens.device)
        rows = torch.arange(batch, device=columns.device)[:, None].expand(-1, len(columns))
        return self._part(
            rows, columns.expand_as(rows), self.real_tokens[:, columns], self.kwargs.get("attention_mask")
        )

    def _part(
        self, rows: Tensor, columns: Tensor, real_tokens: Tensor, mask: Tensor | None
    ) -> dict[str, Any]:
        """Arguments for the tokens at `(rows, columns)` of the batch."""

        def at(values: Tensor) -> Tensor:
            return values[..., rows.to(values.device), columns.to(values.device)]

        part = without_cache(self.kwargs)
        embeddings = self.kwargs["inputs_embeds"]
        part["inputs_embeds"] = embeddings[rows.to(embeddings.device), columns.to(embeddings.device)]
        part |= {"attention_mask": mask, "position_ids": at(self.positions)}
        visual = self.kwargs.get("visual_pos_masks")
        if visual is not None:  # features that Qwen3-VL adds to the image tokens, listed over the whole batch
            number = (visual.flatten().long().cumsum(0) - 1).view_as(visual)
            part["visual_pos_masks"] = at(visual) & real_tokens.to(visual.device)
            chosen = at(number)[part["visual_pos_masks"]]
            part["deepstack_visual_embeds"] = [
                each[chosen.to(each.device)] for each in self.kwargs["deepstack_visual_embeds"]
            ]
        return part
