"""Answers under a method: written by it, or forced on it word by word to see what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlmfix.api import decoding_under, generate
from vlmfix.engine.capabilities import ChoosesTokens
from vlmfix.explanation.observers import AnswerObserver, Seen
from vlmfix.explanation.reading import Reader, Scores
from vlmfix.inference.output import Answer
from vlmfix.methods.base import Method
from vlmfix.methods.multi_pass import MultiPassMethod


def why_not_forced(methods: Sequence[Method]) -> str:
    """Why an answer cannot be forced on methods; "": it can."""
    for each in methods:
        if isinstance(each, MultiPassMethod):
            return f"{each.name} asks the model several times, so that there is no one pass to look into"
        if isinstance(each, ChoosesTokens):
            return f"{each.name} chooses the tokens itself, so that none can be forced on it"
    decoding = decoding_under(methods, {})
    beams, samples = decoding.get("num_beams", 1), decoding.get("do_sample", False)
    if beams > 1 or samples:
        how = f"with {beams} beams" if beams > 1 else "by sampling"
        return (
            f"{'+'.join(each.name for each in methods)} decodes {how}, and only greedy answers are compared"
        )
    return ""


def write(reader: Reader, methods: Sequence[Method], max_new_tokens: int, **kwargs: Any) -> Answer:
    """The answer under methods, greedy where they do not decode otherwise; see `vlmfix.generate`."""
    written: list[Answer] = []
    generate(
        reader.model,
        reader.processor,
        reader.picture,
        reader.prompt,
        list(methods),
        max_new_tokens=max_new_tokens,
        on_answer=written.append,
        **kwargs,
    )
    return written[0]


@dataclass(frozen=True, eq=False)
class Forced:
    """What methods make of an answer that is forced on them.

    Args:
        scores: of its tokens, with the distributions.
        seen: attention of the rows that predict them, by layer; None: the method shows the model other
            image tokens.
    """

    scores: Scores
    seen: dict[int, Seen] | None


def force(reader: Reader, methods: Sequence[Method], token_ids: Sequence[int]) -> Forced:
    """Let `generate` write a given answer under methods, and watch it.

    Args:
        methods: for which `why_not_forced` has no reason.
        token_ids: of the answer.
    """
    observer, forcing = AnswerObserver(sinks=reader.sink_rule), _Forcing(token_ids)
    processors = LogitsProcessorList([forcing])
    write(reader, [*methods, observer], len(token_ids), logits_processor=processors)
    seen = observer.collected()
    shown = next(iter(seen.values())).image.shape[1] if seen else 0
    return Forced(
        Scores.of(torch.stack(forcing.seen), token_ids, keep=True), seen if shown == reader.cells else None
    )


class _Forcing(LogitsProcessor):
    """Keeps the logits it is given, and lets only the next token of an answer through."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._left = list(token_ids)
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores[0].float().cpu())
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._left.pop(0)] = 0
        return forced
