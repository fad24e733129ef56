"""What follows a prompt, read sequence by sequence on the cache, with alternatives side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from vlmfix.engine import compatibility, kernels
from vlmfix.engine.buffered_cache import take_room
from vlmfix.engine.caches import read_cache, with_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.state import CandidateBlock
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import text_decoder


class PromptBatch:
    """Prompts that have been read, each in as many rows as it has sequences.

    Args:
        model: with or without methods attached.
        input_ids: as `generate` prepared them, `(samples * sequences, tokens)`.
        model_kwargs: what else it prepared.
        sequences: of each prompt.

    Raises:
        UnsupportedError: there is no empty cache to read into.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, model_kwargs: Mapping[str, Any], sequences: int
    ) -> None:
        cache = read_cache(model_kwargs)
        compatibility.check_cache(cache)
        if cache is None or cache.get_seq_length() > 0:
            raise UnsupportedError(
                "alternatives are read on a cache that begins with the prompt; pass the whole prompt, with "
                "use_cache=True and without a filled cache"
            )
        prepare: Any = model.prepare_inputs_for_generation  # of GenerationMixin, unknown to its type
        inputs = prepare(input_ids, is_first_iteration=True, **model_kwargs)
        output = model(**inputs, return_dict=True)
        self.logits = output.logits[:, -1].to(device=input_ids.device, dtype=torch.float32)
        """Of the first token of each row, `(samples * sequences, vocabulary)` float32."""
        self._attachment = vars(text_decoder(model)).get(kernels.ATTRIBUTE)
        self.context: DecodeContext | None = None if self._attachment is None else self._attachment.context
        """Of all rows; None if no method is attached."""
        self._model = model
        self._cache = read_cache(output)
        take_room(self._cache)  # what is read of it below must stay when it is cropped
        self._kwargs = model_kwargs
        self._sequences = sequences

    @property
    def samples(self) -> int:
        """Number of prompts."""
        return len(self.logits) // self._sequences

    @contextmanager
    def sample(self, index: int) -> Iterator[StepDecoder]:
        """Read on after one prompt; methods then see a run of its sequences alone."""
        rows = slice(index * self._sequences, (index + 1) * self._sequences)
        cache = copy(self._cache)
        cache.layers = []
        for layer in self._cache.layers:
            own = copy(layer)
            own.keys, own.values = layer.keys[rows], layer.values[rows]
            cache.layers.append(own)
        positions = self._kwargs["position_ids"][..., -1:]
        # Without padding there may be fewer rows, which are then all equal.
        own_rows = rows if positions.shape[-2] == len(self.logits) else slice(1)
        mask = self._kwargs.get("attention_mask")
        step_decoder = StepDecoder(
            self._model,
            self.logits[rows],
            cache,
            positions[..., own_rows, :],
            None if mask is None else mask[rows],
            keeps_logits="logits_to_keep" in self._kwargs,
        )
        if self._attachment is None:
            yield step_decoder
        else:
            step_decoder.one_by_one = compatibility.is_flash(self._attachment.kernel)
            with self._attachment.part(rows) as step_decoder.context:
                yield step_decoder


class StepDecoder:
    """Reads what follows one prompt, in sequences of one length.

    Args:
        model: which has read the prompt.
        logits: of the first token after it, `(sequences, vocabulary)` float32.
        cache: of the sequences.
        position: of the last token of the prompt, `(..., sequences or 1, 1)`.
        attention_mask: of the prompt, `(sequences, tokens)`; None without padding.
        keeps_logits: whether the model can be told how many logits are wanted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        logits: Tensor,
        cache: DynamicCache,
        position: Tensor,
        attention_mask: Tensor | None,
        *,
        keeps_logits: bool,
    ) -> None:
        self.logits = logits
        self.context: DecodeContext | None = None
        """Of the sequences; None if no method is attached."""
        self.one_by_one = False
        """Whether alternatives are read in passes of their own, for kernels that take no 4-D mask."""
        self.length = 0
        """Number of tokens that stand after the prompt in every sequence."""
        self._model = model
        self._cache = cache
        self._position = position
        self._attention_mask = attention_mask
        self._keeps_logits = keeps_logits
        self._pending = 0

    def alternatives(self, tokens: Tensor) -> Tensor:
        """Logits after each of several next tokens; `keep` or `follow` then says what becomes of them.

        Some method must be attached, or they would see each other.

        Args:
            tokens: `(sequences, alternatives)`.

        Returns:
            `(sequences, alternatives, vocabulary)` float32.
        """
        assert self.context is not None
        self._pending = tokens.shape[1]
        if not self.one_by_one:
            return self._read(tokens, CandidateBlock(self.length, self._pending, alternatives=True))
        layers: list[Any] = self._cache.layers  # typed as their base class, without keys
        read, columns = [], []
        for token in tokens.split(1, dim=1):
            read.append(self._read(token, CandidateBlock(self.length, 1)))
            columns.append([(layer.keys[:, :, -1:], layer.values[:, :, -1:]) for layer in layers])
            self._cache.crop(-1)
        for layer, pairs in zip(layers, zip(*columns, strict=True), strict=True):
            keys, values = zip(*pairs, strict=True)
            layer.keys = torch.cat([layer.keys, *keys], dim=2)
            layer.values = torch.cat([layer.values, *values], dim=2)
        return torch.cat(read, dim=1)

    def keep(self, sources: Tensor, choices: Tensor) -> None:
        """Go on with one alternative in each sequence; the prompt, equal in all, is not copied.

        Args:
            sources: the sequence that each new one continues, `(sequences,)` int64.
            choices: which of its alternatives, `(sequences,)` int64.
        """
        layers: list[Any] = self._cache.layers
        for layer in layers:
            for states in (layer.keys, layer.values):
                source, choice = sources.to(states.device), choices.to(states.device)
                behind = states[:, :, states.shape[2] - self._pending - self.length :]
                earlier = behind[source, :, : self.length]
                behind[:, :, : self.length + 1] = torch.cat(
                    [earlier, behind[source, :, self.length + choice][:, :, None]], dim=2
                )
        if self._pending > 1:
            self._cache.crop(1 - self._pending)
        self._pending = 0
        self.length += 1

    def follow(self, sources: Tensor) -> None:
        """Let each sequence continue another one, and forget alternatives.

        Args:
            sources: `(sequences,)` int64.
        """
        if self._pending:
            self._cache.crop(-self._pending)
            self._pending = 0
        self._cache.reorder_cache(cast("torch.LongTensor", sources))

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after the next token of each sequence.

        Args:
            tokens: `(sequences,)`.

        Returns:
            `(sequences, vocabulary)` float32.
        """
        logits = self._read(tokens[:, None], CandidateBlock(self.length, 1))[:, -1]
        self.length += 1
        return logits

    def again(self, tokens: Tensor) -> Tensor:
        """Logits after other sequences in place of those that there are.

        Args:
            tokens: all that stands after the prompt, `(sequences, tokens)`; at least one token.

        Returns:
            `(sequences, vocabulary)` float32.
        """
        if self.length + self._pending:
            self._cache.crop(-self.length - self._pending)
        self._pending, self.length = 0, tokens.shape[1]
        return self._read(tokens, CandidateBlock(0, self.length))[:, -1]

    def _read(self, tokens: Tensor, block: CandidateBlock) -> Tensor:
        """Logits after tokens `(sequences, size)`; after the last alone where they follow each other."""
        given: dict[str, Any] = {}
        if self._keeps_logits:
            given["logits_to_keep"] = block.size if block.alternatives else 1
        positions = self._position + block.places(self._position.device)
        if self.context is not None:
            self.context.engine.candidates, self.context.step = (
                block,
                block.before + (1 if block.alternatives else block.size),
            )
            mask = block.attention_mask(self.context.layout_at(0), tokens.device)
        else:
            mask = self._attention_mask
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(len(mask), block.before + block.size)], dim=1)
        try:
            output = self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions.expand(*positions.shape[:-2], *tokens.shape),
                use_cache=True,
                return_dict=True,
                **with_cache(self._model, given, self._cache),
            )
        finally:
            if self.context is not None:
                self.context.engine.candidates = None
        logits: Tensor = output.logits.to(device=tokens.device, dtype=torch.float32)
        return logits
