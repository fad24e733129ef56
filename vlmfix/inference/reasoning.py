"""Reasoning before an answer: the marks around it, and where it ends among the tokens that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import ProcessorMixin

from vlmfix.inference.chat import text_and_spans
from vlmfix.inference.turns import chat_template

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
    def of(cls, processor: ProcessorMixin) -> ReasoningMarks | None:
        """The marks of which the tokenizer of a processor, or its chat template, has one; None: none."""
        added, template = processor.tokenizer.get_added_vocab(), chat_template(processor) or ""
        known = (cls(*each) for each in _MARKS)
        return next((each for each in known if any(mark in added or mark in template for mark in each)), None)

    def is_opened_by(self, prompt: Sequence[int], processor: ProcessorMixin) -> bool:
        """Whether a prompt ends where a reasoning part has begun, `prompt` in tokens."""
        tail: str = processor.tokenizer.decode(list(prompt[-_TAIL:]), skip_special_tokens=False)
        return tail.rstrip().endswith(self.begin)

    def split(self, token_ids: Sequence[int], processor: ProcessorMixin, *, is_open: bool) -> Split | None:
        """Where the reasoning part of what a model wrote ends; None: there is none.

        Args:
            token_ids: what it wrote, without the token that ended it.
            processor: of the model.
            is_open: whether the prompt opened it. Else it must stand at the beginning, or be closed without
                having been opened, as some checkpoints do.
        """
        whole: str = processor.tokenizer.decode(list(token_ids), skip_special_tokens=False)
        if not is_open and self.begin not in whole and self.end not in whole:
            return None
        text, spans = text_and_spans(token_ids, processor)
        before, end, _ = text.partition(self.end)
        inner = before.lstrip().removeprefix(self.begin)
        opens_itself = before.lstrip().startswith(self.begin)
        if not is_open and not opens_itself and (not end or self.begin in before):
            return None
        if not end:
            return Split(inner.strip(), len(token_ids), "", is_closed=False)
        stop = len(before) + len(end)
        count = next((place for place, (_, last) in enumerate(spans) if last > stop), len(spans))
        rest: str = processor.tokenizer.decode(list(token_ids[count:]), skip_special_tokens=True)
        if count < len(spans) and spans[count][0] < stop:  # a token with the end of the mark and more
            rest = rest[stop - spans[count][0] :]
        return Split(inner.strip(), count, rest.lstrip())


class Split(NamedTuple):
    """The two parts of what a model wrote.

    Args:
        reasoning: without marks.
        tokens: number of its tokens, marks included.
        answer: what follows it, without special tokens and white space in front, which parsers would read as
            part of a word; "" where it does not end.
        is_closed: whether it ends.
    """

    reasoning: str
    tokens: int
    answer: str
    is_closed: bool = True
