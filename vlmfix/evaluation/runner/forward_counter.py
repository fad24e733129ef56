"""The forward passes that it takes to answer a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ForwardCounter:
    """Counts the forward passes of a model, and notes when the first one was over.

    Args:
        model: whose passes.
        keeps_logits: whether the last logits of the first pass are kept, `(rows, vocabulary)`.
    """

    def __init__(self, model: PreTrainedModel, *, keeps_logits: bool) -> None:
        self.model = model
        self.keeps_logits = keeps_logits
        self.count = 0
        self.first: float | None = None
        self.logits: Tensor | None = None

    def begin(self) -> None:
        """Forget what was counted."""
        self.count, self.first, self.logits = 0, None, None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count within the block."""
        handle = self.model.register_forward_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.count += 1
        if self.first is None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            self.first = time.perf_counter()
            if self.keeps_logits:
                self.logits = output.logits[:, -1].clone()
