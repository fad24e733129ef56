"""Logits processors: a method that decodes beside `generate`, with a cache of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin

from vlmfix.engine.attach import alone
from vlmfix.engine.caches import with_cache
from vlmfix.engine.call import Call
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.method import MethodHooks
from vlmfix.engine.modules import offsets, swap_offsets
from vlmfix.engine.phases import sources
from vlmfix.errors import UnsupportedError
from vlmfix.models.structure import new_cache, text_decoder


class MethodLogitsProcessor(LogitsProcessor):
    """Reads every prompt and every token a second time under a method, which edits the scores of `generate`.

    Its cache needs no help to follow beams: what it holds depends on the tokens alone, so that a row goes on
    from any row that had the same ones.

    Args:
        model: a stock model, whatever is attached to it.
        method: with every value filled in.
        inputs: of the processor: `input_ids`, left-padded, and what belongs to them.
        processor: of the model, for methods that read the words of the prompt.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        method: MethodHooks,
        inputs: Mapping[str, Any],
        processor: ProcessorMixin | None = None,
    ) -> None:
        name = type(method).__name__
        if not method.owns_logits:
            raise UnsupportedError(
                f"{name} acts inside the model, which no logits processor reaches; use "
                f"'with {name}()(model):'"
            )
        if not isinstance(inputs.get("input_ids"), Tensor):
            raise ValueError("inputs has no input_ids; pass what the processor returned, as to generate")
        self._model = model
        self._method = method
        self._inputs = dict(inputs)
        self._processor = processor
        self._context: DecodeContext | None = None
        self._cache = new_cache(text_decoder(model))
        self._seen: Tensor | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token as the method makes them, `(sequences, vocabulary)` float32.

        Raises:
            ValueError: these are not the inputs that it was made for, or it missed a token of theirs.
            UnsupportedError: a processor before it changed scores, or an attached method does not go with it.
        """
        prompt = self._inputs["input_ids"].to(input_ids.device)
        if input_ids.shape[1] <= prompt.shape[1]:
            copies = max(len(input_ids) // len(prompt), 1)
            if not torch.equal(input_ids, prompt.repeat_interleave(copies, dim=0)):
                raise self._stranger()
            tokens, self._context, self._cache = self._inputs, None, new_cache(text_decoder(self._model))
        else:
            copies = 1
            tokens = self._next_token(input_ids)
        self._seen = input_ids
        before = offsets(self._model)  # on which the calls of `generate` rely
        try:
            call = Call(
                generates=True,
                thread=threading.get_ident(),
                inputs=self._inputs,
                prompt_ids=self._inputs["input_ids"],
                scores=scores.float(),
                copies=copies,
                context=self._context,
            )
            with alone(self._model, self._method, call, self._processor):
                output = self._model(
                    **with_cache(self._model, tokens, self._cache),
                    use_cache=True,
                    logits_to_keep=1,
                    return_dict=True,
                )
                self._context = call.context
        finally:
            swap_offsets(before)
        edited: Tensor = output.logits[:, -1]
        return edited

    def _next_token(self, input_ids: Tensor) -> dict[str, Any]:
        """Arguments of the pass that reads the newest token, when the caches have followed their rows."""
        seen, context = self._seen, self._context
        if seen is None or context is None or len(seen) != len(input_ids):
            raise self._stranger()
        if input_ids.shape[1] != seen.shape[1] + 1:
            raise self._stranger()
        copies = len(seen) // len(self._inputs["input_ids"])
        source = sources(seen, input_ids[:, :-1], copies)
        if bool((source < 0).any()):
            raise self._stranger()
        if copies > 1:
            self._cache.reorder_cache(cast("torch.LongTensor", source))  # and the branches with it
        positions = context.position_of(context.step)
        return {
            "input_ids": input_ids[:, -1:],
            "position_ids": positions.expand(*positions.shape[:-2], len(input_ids), 1),
            "attention_mask": context.layout.key_mask(input_ids.shape[1], input_ids.device),
        }

    def _stranger(self) -> ValueError:
        name = type(self._method).__name__
        return ValueError(
            f"this logits processor of {name} was made for other inputs, or did not see every token of them; "
            f"make one for each batch: {name}().logits_processor(model, inputs)"
        )
