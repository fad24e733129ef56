"""What a model wrote in answer to a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import ProcessorMixin


@dataclass(frozen=True)
class Answer:
    """An answer with its tokens.

    Args:
        text: as the model wrote it, white space included, without special tokens.
        token_ids: the new tokens, the one that ended it included.
        prompt_tokens: length of the prompt in tokens, image tokens included, without padding.
        ended: whether the model ended it; False: it was cut at the length limit.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    ended: bool


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
    return [Answer(*each) for each in zip(texts, rows, prompts, ended.tolist(), strict=True)]
