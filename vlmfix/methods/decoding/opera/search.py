"""The search of OPERA for the answers to one prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from vlmfix.engine.method import MethodHooks
from vlmfix.engine.step_decoder import StepDecoder
from vlmfix.methods.decoding.opera.beam import (
    Beams,
    Continuation,
    Finished,
    Rules,
)
from vlmfix.methods.decoding.opera.penalty import (
    FIRST_TOKENS,
    Rollbacks,
    candidate_scores,
    column_scores,
    extend_columns,
    mode,
    penalties,
)


class Seen(NamedTuple):
    """What the last layer attends to from tokens after the prompt.

    Args:
        image: `(sequences, tokens)`.
        answer: the generated tokens before each and itself, `(sequences, tokens, generated + 1)`.
    """

    image: Tensor
    answer: Tensor


class SearchSettings(NamedTuple):
    """Numbers of OPERA, see `vlmfix.methods.decoding.opera.opera.OPERA`; `is_plain`: no token is tried."""

    threshold: float
    num_attn_candidates: int
    window_size: int
    scale_factor: float
    penalty_weights: float
    is_plain: bool


class Tried(NamedTuple):
    """Candidates for the next token, and what came of reading them.

    Args:
        tokens: the likeliest first, `(beams, candidates)`.
        scores: their log-probabilities among each other, penalised, `(beams, candidates)`.
        penalties: `(beams, candidates)`.
        locations: of the largest column score, `(beams, candidates)`.
        image_attention: `(beams, candidates)`.
        columns: logarithms of the column products, `(beams, candidates, tokens + 1)`.
        logits: after them, `(beams, candidates, vocabulary)`.
    """

    tokens: Tensor
    scores: Tensor
    penalties: Tensor
    locations: Tensor
    image_attention: Tensor
    columns: Tensor
    logits: Tensor


class Search:
    """A beam search that tries tokens before it chooses, and takes them back.

    Args:
        method: under which steps are counted.
        settings: its numbers.
        rules: of the beams.
        step_decoder: of the prompt.
        prompt_ids: `(beams, prompt)`.
        processors: of log-probabilities.
        criteria: by which sequences end.
    """

    def __init__(
        self,
        method: MethodHooks,
        settings: SearchSettings,
        rules: Rules,
        step_decoder: StepDecoder,
        prompt_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
    ) -> None:
        self.method, self.settings = method, settings
        self.rules = rules
        self.step_decoder = step_decoder
        self.prompt_ids = prompt_ids
        self.processors = processors
        self.criteria = criteria
        self.rollbacks = Rollbacks(
            settings.threshold,
            settings.num_attn_candidates,
            settings.window_size,
        )
        self.tokens_taken_back = 0
        self._saved: dict[int, tuple[Beams, Tensor]] = {}
        self._chosen: dict[int, set[tuple[int, int]]] = {}
        self._banned: dict[int, set[tuple[int, int]]] = {}

    def run(self) -> tuple[Finished, ...]:
        """The answers, best first."""
        beams, logits = Beams.start(self.rules), self.step_decoder.logits
        columns = logits.new_zeros(len(logits), 0)
        anew = False
        while not beams.done:
            length = beams.length
            self._saved[length] = beams, columns
            self._saved.pop(length - self.settings.window_size - 1, None)
            tried = None if anew or self.settings.is_plain else self._try(logits, columns)
            scores = self._scores(logits, tried, self._banned[length] if anew else None)
            best, candidates, locations = self._best(beams, scores, tried)
            target = None if tried is None else self._report(beams, locations)
            self._count(beams, tried, taken_back=target is not None)
            anew = target is not None
            if target is not None:
                beams, columns, logits = self._take_back(length, target)
                continue
            if not best:  # the processors allow nothing of what was tried, or left after a rollback
                tried = None
                best, *_ = self._best(beams, self._scores(logits, None, None), None)
            beams, going = beams.advance(best)
            if going and not beams.done:
                self._chosen[length] = {(each.source, each.token) for each in going}
                columns, logits = self._go_on(going, candidates, tried, columns)
        return beams.finished

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The largest logits of each beam and their tokens, `(beams, candidates)` each."""
        largest, tokens = logits.topk(min(self.settings.num_attn_candidates, logits.shape[-1]), dim=-1)
        return largest, tokens

    def _try(self, logits: Tensor, columns: Tensor) -> Tried:
        """Read the candidates of every beam, and penalise them."""
        likeliest, tokens = self._candidates(logits)
        following, seen = self._watch(lambda: self.step_decoder.alternatives(tokens))
        extended = extend_columns(columns[:, None], seen.answer, self.settings.scale_factor)
        column = column_scores(extended)
        penalty = penalties(column, seen.image)
        return Tried(
            tokens=tokens,
            scores=candidate_scores(likeliest, self.settings.penalty_weights * penalty),
            penalties=penalty,
            locations=column.argmax(dim=-1),
            image_attention=seen.image,
            columns=extended,
            logits=following,
        )

    def _watch(self, read: Callable[[], Tensor]) -> tuple[Tensor, Seen]:
        """What `read` returns, and what the last layer attended to meanwhile."""
        context = self.step_decoder.context
        assert context is not None
        seen = context.state[self.method, "seen"] = []
        try:
            logits = read()
        finally:
            del context.state[self.method, "seen"]
        image, answer = (torch.cat(parts, dim=1).to(logits.device) for parts in zip(*seen, strict=True))
        return logits, Seen(image, answer)

    def _scores(self, logits: Tensor, tried: Tried | None, banned: set[tuple[int, int]] | None) -> Tensor:
        """Log-probabilities of the next token, `(beams, vocabulary)`, minus infinity where it cannot be.

        Args:
            tried: the candidates; None: none were read, and all tokens are allowed.
            banned: pairs of beam and token, where all others are allowed; None: no token was taken back.
        """
        if banned is not None:
            index = torch.tensor(sorted(banned), dtype=torch.long, device=logits.device).view(-1, 2)
            allowed = logits.index_put((index[:, 0], index[:, 1]), logits.new_tensor(-math.inf))
            return allowed.log_softmax(dim=-1)
        if tried is None:
            return logits.log_softmax(dim=-1)
        return torch.full_like(logits, -math.inf).scatter(1, tried.tokens, tried.scores)

    def _best(
        self, beams: Beams, scores: Tensor, tried: Tried | None
    ) -> tuple[list[Continuation], list[list[int]], list[list[int]]]:
        """The best continuations; tokens and locations of the candidates that were tried. Reads the device.

        Args:
            scores: log-probabilities, `(beams, vocabulary)`.
        """
        answers = torch.tensor(beams.tokens, dtype=self.prompt_ids.dtype, device=scores.device)
        ids = cast("torch.LongTensor", torch.cat([self.prompt_ids, answers], dim=1))
        totals = self.processors(ids, scores) + scores.new_tensor(beams.scores)[:, None]
        values, places = totals.flatten().topk(min(self.rules.continuations, totals.numel()))
        sources, tokens = places // totals.shape[1], places % totals.shape[1]
        ends = self.criteria(torch.cat([ids[sources], tokens[:, None]], dim=1), None)
        tables = () if tried is None else (tried.tokens, tried.locations)
        numbers = on_host(values, sources, tokens, ends, *tables)
        columns, (candidates, locations) = numbers[:4], numbers[4:] or ([], [])
        best = [Continuation(*each) for each in zip(*columns, strict=True) if each[0] > -math.inf]
        return best, candidates, locations

    def _report(self, beams: Beams, locations: list[list[int]]) -> int | None:
        """The token from which to choose anew, by the locations of each beam's candidates; None: go on."""
        live = [score > -math.inf for score in beams.scores]
        return self.rollbacks.report(
            [mode(each) if own else None for each, own in zip(locations, live, strict=True)]
        )

    def _go_on(
        self, going: list[Continuation], candidates: list[list[int]], tried: Tried | None, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Column products and logits after the chosen tokens."""
        device = self.prompt_ids.device
        sources = torch.tensor([each.source for each in going], device=device)
        if tried is not None and all(each.token in candidates[each.source] for each in going):
            choices = torch.tensor(
                [candidates[each.source].index(each.token) for each in going], device=device
            )
            self.step_decoder.keep(sources, choices)
            return tried.columns[sources, choices], tried.logits[sources, choices]
        self.step_decoder.follow(sources)
        tokens = torch.tensor([each.token for each in going], device=device)
        if self.settings.is_plain:
            return columns, self.step_decoder.step(tokens)
        logits, seen = self._watch(lambda: self.step_decoder.step(tokens))
        return extend_columns(columns[sources], seen.answer[:, 0], self.settings.scale_factor), logits

    def _take_back(self, length: int, target: int) -> tuple[Beams, Tensor, Tensor]:
        """Beams, column products and logits as they were when token `target` was to be chosen."""
        self._banned.setdefault(target, set()).update(self._chosen.get(target, ()))
        for kept in (self._saved, self._chosen, self._banned):
            for later in [each for each in kept if each > target]:
                del kept[later]
        self.tokens_taken_back += length - target
        beams, columns = self._saved[target]
        return (
            beams,
            columns,
            self.step_decoder.again(torch.tensor(beams.tokens, device=self.prompt_ids.device)),
        )

    def _count(self, beams: Beams, tried: Tried | None, *, taken_back: bool) -> None:
        """Note what was done at a token, for the activity of the method."""
        context = self.step_decoder.context
        if context is None:
            return
        context.alive = torch.tensor(beams.scores, device=context.layout.image_tokens.device) > -math.inf
        if self.settings.is_plain:
            return
        if tried is not None:
            changed = tried.scores.argmax(dim=1).to(context.alive.device) != 0
            context.count(
                self.method, 0, ((changed | taken_back) & context.alive).long(), context.alive.long()
            )
            context.measure(self.method, image_attention=tried.image_attention.mean(dim=1, keepdim=True))
            if beams.length >= FIRST_TOKENS:
                low, high = tried.penalties.aminmax(dim=1, keepdim=True)
                context.measure(self.method, size=high - low)
        context.counts_of(self.method).end_step(context.alive, context.alive, is_prefill=False)


def on_host(*tensors: Tensor) -> list[Any]:
    """Tensors as lists, read from the device at once; their whole numbers are below 2**24."""
    numbers = torch.cat([each.flatten().float() for each in tensors]).cpu()
    parts = numbers.split([each.numel() for each in tensors])
    return [part.view(each.shape).to(each.dtype).tolist() for part, each in zip(parts, tensors, strict=True)]
