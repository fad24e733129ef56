"""Marks around the reasoning part that some checkpoints write before an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vlmfix.errors import UnsupportedError

# Of Qwen3, Qwen3-VL and DeepSeek; of Magistral; of Kimi-VL; of Gemma 4.
_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
)
# Tokens at the end of a prompt in which a template may open a reasoning part.
_TAIL = 16


class ReasoningMarks(NamedTuple):
    """What stands around a reasoning part.

    Args:
        begin: opens it.
        end: closes it.
    """

    begin: str
    end: str

    @classmethod
    def of(cls, processor: Any) -> ReasoningMarks | None:
        """The marks of which the tokenizer of a processor, or its chat template, has one; None: none."""
        template = processor.chat_template or processor.tokenizer.chat_template or ""
        added = processor.tokenizer.get_added_vocab()
        known = (cls(*each) for each in _MARKS)
        return next((each for each in known if any(mark in added or mark in template for mark in each)), None)

    def is_opened_by(self, prompt: Sequence[int], processor: Any) -> bool:
        """Whether a prompt ends where a reasoning part has begun, `prompt` in tokens."""
        tail: str = processor.tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False)
        return tail.rstrip().endswith(self.begin)

    def token_ids(self, processor: Any) -> tuple[int, int]:
        """The tokens that open and close it.

        Raises:
            UnsupportedError: a mark is no single token.
        """
        added = processor.tokenizer.get_added_vocab()
        for mark in self:
            if mark not in added:
                raise UnsupportedError(
                    f"the tokenizer has no token {mark!r} of its own, so that no step tells where the "
                    "reasoning ends; leave act_on out"
                )
        return added[self.begin], added[self.end]
