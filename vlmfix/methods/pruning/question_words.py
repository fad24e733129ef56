"""Embeddings of the question's words, for methods that choose image tokens by what is asked."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vlmfix.engine.context import DecodeContext
from vlmfix.inference.chat import find_question
from vlmfix.inference.keywords import content_words

# How the benchmarks of LLaVA-1.5 ask for the form of an answer, which says nothing of the picture.
_ANSWER_FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


def question_embeddings(
    context: DecodeContext, hidden_states: Tensor, *, content_only: bool, strip_suffix: bool = True
) -> list[Tensor]:
    """What enters the language model at the words of each prompt's question, one `(words, hidden)` a prompt;
    `(0, hidden)` where there is no question.

    Args:
        context: in the prefill; it has the processor.
        hidden_states: what enters layer 0, `(batch, tokens, hidden)`.
        content_only: leave out function words, unless nothing else is left.
        strip_suffix: leave out sentences that ask for a form of answer, likewise.

    Raises:
        UnsupportedError: the token ids are not known, or where the question stands.
    """
    ids = context.token_ids
    if context.video_tokens is not None:  # a video is no part of the question either
        ids = ids.masked_fill(context.video_tokens.to(ids.device), context.image_token)
    found: dict[tuple[int, ...], list[int]] = {}
    embeddings = []
    starts = context.layout.real_tokens.int().argmax(dim=1).tolist()
    for row, (start, tokens) in enumerate(zip(starts, ids.tolist(), strict=True)):
        prompt = tuple(tokens[start:])
        if prompt not in found:  # beams share their prompt
            question = find_question(prompt, context.image_token, context.processor)
            spans = asking_words(question.text, content_only=content_only, strip_suffix=strip_suffix)
            found[prompt] = question.tokens_of(spans)
        places = torch.tensor(found[prompt], dtype=torch.long, device=hidden_states.device)
        embeddings.append(hidden_states[row, start + places])
    return embeddings


def asking_words(question: str, *, content_only: bool, strip_suffix: bool) -> list[tuple[int, int]]:
    """Character spans of the words of a question that say what it is about.

    Args:
        question: its text.
        content_only: leave out function words, unless nothing else is left.
        strip_suffix: leave out sentences that ask for a form of answer, unless nothing else is left.
    """
    asked = question
    if strip_suffix:
        for sentence in _ANSWER_FORMATS:
            asked = asked.replace(sentence, " " * len(sentence))
        asked = asked if asked.strip() else question
    every = [match.span() for match in re.finditer(r"\S+", asked)]
    return (list(content_words(asked)) or every) if content_only else every
