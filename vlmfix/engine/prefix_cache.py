"""Prompts that begin alike, up to their last image, read once for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from vlmfix.engine import compatibility, kernels, tokens
from vlmfix.engine.beginnings import WholeSequences, fill, keeps_all_tokens
from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.callers import turns_of
from vlmfix.engine.kept_beginnings import Beginning, ReadBeginnings, digests, gathered
from vlmfix.engine.kept_readings import KeptReadings, kept_readings
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import Prefix
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import new_cache, text_decoder


@contextmanager
def shared_prefix(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, `generate` reads what several prompts of a batch have in common only once.

    That is the text and images before the last image token; prompts are compared by value. The key and
    value cache is then the same as without, but for rounding. Methods that act there (`Method.keeps_prefix`),
    prompts without an image, caches other than the dynamic one and calls that want all hidden states read
    each prompt in full. In a block of `keep_readings`, what was read in earlier passes is not read again.

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
    kept = kept_readings(model)

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
        fewest = 2 if kept is None else 1  # others may share it
        batch = None if args else _Batch.of(kwargs, prompt_ids, visual_tokens, fewest)
        prefix = None if batch is None else batch.prefix(alone=kept is not None)
        if batch is None or prefix is None:
            return read(*args, **kwargs)
        with_states = attachment is not None and any(each.sees_layers for each in attachment.methods)

        def read_part(part: Prefix) -> ReadBeginnings:
            """Read beginnings, in which no method edits."""
            if context is not None:
                context.engine.prefix = part
            start = 0.0 if kept is None else kept.now()
            cache = new_cache(decoder)
            read(**with_cache(decoder, batch.whole.beginnings(part), cache))
            seconds = 0.0 if kept is None else (kept.now() - start) / len(part.first_rows)
            return ReadBeginnings.of(cache.layers, part.hidden_states, seconds)

        beginnings: ReadBeginnings | None
        if kept is None:
            beginnings = read_part(prefix)
        else:
            beginnings = batch.known(prefix, kept, read_part, with_states=with_states)
        if beginnings is None:
            return read(*args, **kwargs)
        prefix.hidden_states = list(beginnings.hidden_states) if with_states else []
        prefix.is_read = True
        if context is not None:
            context.engine.prefix = prefix
        fill(batch.cache, prefix, beginnings.layers)
        output = read(**with_cache(decoder, batch.whole.rest(prefix), batch.cache))
        prefix.hidden_states.clear()
        return output

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
    """A pass of the decoder that reads whole prompts.

    Args:
        whole: what it reads.
        cache: that it fills; empty.
        starts: column of the first token of each prompt.
        ends: column of the last image token of each prompt.
    """

    whole: WholeSequences
    cache: DynamicCache
    starts: list[int]
    ends: list[int]

    @classmethod
    def of(
        cls, kwargs: dict[str, Any], prompt_ids: Tensor | None, visual_tokens: list[int], fewest: int
    ) -> _Batch | None:
        """The pass, if at least so many prompts can share anything in it."""
        cache = read_cache(kwargs)
        embeddings, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        detailed = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        if prompt_ids is None or embeddings is None or detailed:
            return None
        if not keeps_all_tokens(cache) or cache.get_seq_length():
            return None
        if len(prompt_ids) < fewest or embeddings.shape[:2] != prompt_ids.shape:
            return None
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != prompt_ids.shape):
            return None
        real_tokens = torch.ones_like(prompt_ids, dtype=torch.bool) if mask is None else mask.bool()
        image_tokens = torch.isin(prompt_ids, prompt_ids.new_tensor(visual_tokens)) & real_tokens
        length = prompt_ids.shape[1]
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=embeddings.device)[None]
        whole = WholeSequences(kwargs, real_tokens, positions)
        # Whether every prompt has an image, and padding on the left only.
        regular = image_tokens.any(dim=1) & (real_tokens.sum(dim=1) == length - whole.starts)
        if not whole.comes_apart or not bool(regular.all()):
            return None
        ends = length - 1 - image_tokens.flip(1).int().argmax(dim=1)
        return cls(whole, cache, whole.starts.tolist(), ends.tolist())

    def prefix(self, *, alone: bool) -> Prefix | None:
        """What the prompts share; None: nothing.

        Args:
            alone: whether they need share nothing with each other.
        """
        firsts: list[int] = []
        owner = []
        embeddings = self.whole.kwargs["inputs_embeds"]
        keys = digests([embeddings[row, self._span(row)] for row in range(len(self.starts))])
        for row, key in enumerate(keys):
            candidates = (number for number, first in enumerate(firsts) if keys[first] == key)
            known = next((number for number in candidates if self._alike(firsts[number], row)), None)
            if known is None:
                firsts.append(row)
            owner.append(len(firsts) - 1 if known is None else known)
        lengths = [self.ends[row] - self.starts[row] for row in firsts]
        longest = max(lengths)
        if (len(firsts) == len(owner) and not alone) or min(self.ends) == 0 or longest == 0:
            return None
        part, starts = self._part(firsts), self.whole.starts
        owners = torch.tensor(owner, device=starts.device)
        tokens = torch.arange(min(self.ends), device=starts.device) - starts[:, None]
        missing = longest - torch.tensor(lengths, device=starts.device)
        places = (tokens + missing[owners, None]).clamp(0, longest - 1)
        return Prefix(part.layout, part.first_rows, owners, places)

    def known(
        self,
        prefix: Prefix,
        kept: KeptReadings,
        read: Callable[[Prefix], ReadBeginnings],
        *,
        with_states: bool,
    ) -> ReadBeginnings | None:
        """The beginnings of the prompts, of which those alone are read that are not kept; None: none is kept
        or can be, and the prompts have none in common.

        Args:
            prefix: see `prefix`.
            kept: what is kept; what is read now is added.
            read: reads beginnings.
            with_states: whether their hidden states are wanted.
        """
        rows = prefix.first_rows.tolist()
        told_by = self.whole.values(rows, list(map(self._span, rows)))
        found = kept.beginnings(told_by, with_states=with_states)
        missing = [number for number, each in enumerate(found) if each is None]
        if len(missing) == len(self.starts) and not kept.has_room(sum(len(each[0]) for each in told_by)):
            return None
        if missing:
            new = read(self._part([rows[number] for number in missing]))
            for row, number in enumerate(missing):
                found[number] = Beginning(new, row, len(told_by[number][0]))
            kept.keep_beginnings([told_by[number] for number in missing], new)
        return gathered([each for each in found if each is not None], with_states=with_states)

    def _part(self, rows: list[int]) -> Prefix:
        """The beginnings of some of the prompts, to be read."""
        device = self.whole.real_tokens.device
        first_rows = torch.tensor(rows, device=device)
        starts, ends = (torch.tensor(each, device=device)[first_rows] for each in (self.starts, self.ends))
        longest = max(self.ends[row] - self.starts[row] for row in rows)
        columns = ends[:, None] - longest + torch.arange(longest, device=device)
        real_tokens = columns >= starts[:, None]
        layout = PromptLayout(torch.zeros_like(real_tokens), real_tokens, columns.clamp_min(0))
        return Prefix(layout, first_rows, torch.arange(len(rows), device=device), columns)

    def _span(self, row: int) -> slice:
        """Columns of a prompt up to its last image token."""
        return slice(self.starts[row], self.ends[row])

    def _alike(self, first: int, row: int) -> bool:
        """Whether two prompts are the same up to their last image token."""
        spans = [self._span(each) for each in (first, row)]
        if spans[0].stop - spans[0].start != spans[1].stop - spans[1].start:
            return False
        embeddings, positions = self.whole.kwargs["inputs_embeds"], self.whole.all_positions
        return torch.equal(embeddings[first, spans[0]], embeddings[row, spans[1]]) and torch.equal(
            positions[..., first, spans[0]], positions[..., row, spans[1]]
        )
