"""The forward passes that it takes to answer a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlmfix.engine.kept_readings import kept_readings
from vlmfix.models.structure import text_decoder

_TOKENS = ("inputs_embeds", "input_ids")


class ForwardCounter:
    """Counts the forward passes of a model, and notes when the first one was over.

    A pass that carries branches in further rows of its batch counts as often as it reads each token: a
    contrast with one branch is two. What was read for another run counts as if it was read again.

    Args:
        model: whose passes.
        keeps_logits: whether the last logits of the first pass are kept, `(rows, vocabulary)`.
    """

    def __init__(self, model: PreTrainedModel, *, keeps_logits: bool) -> None:
        self.model = model
        self.keeps_logits = keeps_logits
        self.count = 0.0
        self.first: float | None = None
        self.logits: Tensor | None = None
        self._read = self._spared = 0

    def begin(self) -> None:
        """Forget what was counted."""
        self.count, self.first, self.logits = 0.0, None, None
        self._spared = self._tokens_spared()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count within the block."""
        handles = [self.model.register_forward_hook(self._note, with_kwargs=True)]
        layers = getattr(text_decoder(self.model), "layers", None)
        if layers is not None:
            handles.append(layers[0].register_forward_hook(self._note_read, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tokens_spared(self) -> int:
        kept = kept_readings(self.model)
        return 0 if kept is None else kept.spared_tokens

    def _note_read(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        self._read += stream.shape[0] * stream.shape[1]

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = next((each for name in _TOKENS if (each := kwargs.get(name)) is not None), None)
        tokens = 0 if given is None else given.shape[0] * given.shape[1]
        before, self._spared = self._spared, self._tokens_spared()
        self.count += max(1.0, (self._read + self._spared - before) / tokens) if tokens else 1.0
        self._read = 0
        if self.first is None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            self.first = time.perf_counter()
            if self.keeps_logits:
                self.logits = output.logits[:, -1].clone()
