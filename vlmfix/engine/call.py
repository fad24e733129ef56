"""State of one call that reads prompts and decodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vlmfix.engine.context import DecodeContext


@dataclass
class Call:
    """What is known of a call of `generate`, of the passes of a logits processor, or of passes by hand.

    Args:
        generates: whether it chooses tokens: of passes by hand, each stands for itself.
        thread: that is at work in it; None: none.
        inputs: what it got, by name; empty for passes by hand.
        prompt_ids: its prompts, once each, `(prompts, prompt)`.
        end_tokens: that end an answer; None: whoever calls knows.
        scores: what methods edit in place of the logits, `(sequences, vocabulary)`.
        copies: sequences of each prompt, which the text decoder reads, and not yet the model.
        context: the run; None before its prompts are read.
    """

    generates: bool = False
    thread: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    prompt_ids: Tensor | None = None
    end_tokens: Tensor | None = None
    scores: Tensor | None = None
    copies: int = 1
    context: DecodeContext | None = None
    layers_seen: set[int] = field(default_factory=set)
