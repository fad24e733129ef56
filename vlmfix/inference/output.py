"""What a model wrote in answer to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import ProcessorMixin

from vlmfix.inference.reasoning import split_reasoning
from vlmfix.models.reasoning_marks import ReasoningMarks


@dataclass(frozen=True)
class Answer:
    """An answer with its tokens.

    Args:
        text: as the model wrote it, white space included, without special tokens; after a reasoning part,
            what follows it.
        token_ids: the new tokens, those of the reasoning and the one that ended it included.
        prompt_tokens: length of the prompt in tokens, image tokens included, without padding.
        ended: whether the model ended it; False: it was cut at the length limit, which counts the reasoning.
        reasoning: what it wrote before the answer, without marks; None: there is no reasoning part.
        reasoning_tokens: how many of the tokens belong to it.
        reached: whether there is an answer; False: the reasoning did not end, and `text` is "".
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    ended: bool
    reasoning: str | None = None
    reasoning_tokens: int = 0
    reached: bool = True


def read_answers(
    output: Tensor, attention_mask: Tensor, end_tokens: Tensor | None, processor: ProcessorMixin
) -> list[Answer]:
    """The answers in what `generate` returned.

    Args:
        output: prompts and new tokens, `(batch, tokens)`.
        attention_mask: of the prompts, `(batch, prompt)`.
        end_tokens: ids that end an answer; None: nothing does.
        processor: of the model.
    """
    new_tokens = output[:, attention_mask.shape[1] :].cpu()
    ends = torch.zeros_like(new_tokens, dtype=torch.bool)
    if end_tokens is not None:
        ends = torch.isin(new_tokens, end_tokens.cpu())
    ended = ends.any(dim=1)
    lengths = torch.where(ended, ends.int().argmax(dim=1) + 1, new_tokens.shape[1]).tolist()
    rows = [tuple(row[:length]) for row, length in zip(new_tokens.tolist(), lengths, strict=True)]
    texts = processor.batch_decode(rows, skip_special_tokens=True)
    prompts = attention_mask.sum(dim=1).tolist()
    answers = [Answer(*each) for each in zip(texts, rows, prompts, ended.tolist(), strict=True)]
    marks = ReasoningMarks.of(processor)
    if marks is None:
        return answers
    asked = output[:, : attention_mask.shape[1]].tolist()
    return [_after_reasoning(*each, marks, processor) for each in zip(answers, asked, strict=True)]


def _after_reasoning(
    answer: Answer, prompt: Sequence[int], marks: ReasoningMarks, processor: ProcessorMixin
) -> Answer:
    written = answer.token_ids[:-1] if answer.ended else answer.token_ids
    found = split_reasoning(written, marks, processor, is_open=marks.is_opened_by(prompt, processor))
    if found is None:
        return answer
    return replace(
        answer,
        text=found.answer,
        reasoning=found.reasoning,
        reasoning_tokens=found.tokens,
        reached=found.is_closed,
    )
