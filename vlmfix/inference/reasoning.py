"""Where the reasoning part of what a model wrote ends among its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import ProcessorMixin

from vlmfix.inference.chat import text_and_spans
from vlmfix.models.reasoning_marks import ReasoningMarks


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


def split_reasoning(
    token_ids: Sequence[int], marks: ReasoningMarks, processor: ProcessorMixin, *, is_open: bool
) -> Split | None:
    """The reasoning part of what a model wrote, and what follows it; None: there is none.

    Args:
        token_ids: what it wrote, without the token that ended it.
        marks: that stand around it.
        processor: of the model.
        is_open: whether the prompt opened it. Else it must stand at the beginning, or be closed without
            having been opened, as some checkpoints do.
    """
    whole: str = processor.tokenizer.decode(list(token_ids), skip_special_tokens=False)
    if not is_open and marks.begin not in whole and marks.end not in whole:
        return None
    text, spans = text_and_spans(token_ids, processor)
    before, end, _ = text.partition(marks.end)
    inner = before.lstrip().removeprefix(marks.begin)
    opens_itself = before.lstrip().startswith(marks.begin)
    if not is_open and not opens_itself and (not end or marks.begin in before):
        return None
    if not end:
        return Split(inner.strip(), len(token_ids), "", is_closed=False)
    stop = len(before) + len(end)
    count = next((place for place, (_, last) in enumerate(spans) if last > stop), len(spans))
    rest: str = processor.tokenizer.decode(list(token_ids[count:]), skip_special_tokens=True)
    if count < len(spans) and spans[count][0] < stop:  # a token with the end of the mark and more
        rest = rest[stop - spans[count][0] :]
    return Split(inner.strip(), count, rest.lstrip())
