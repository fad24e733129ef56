"""A request on its way through the server, and the answers that it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import ProcessorMixin

from vlmfix.inference.conversation import Conversation
from vlmfix.serve.errors import RequestError
from vlmfix.serve.naming import Plan
from vlmfix.serve.responses import Cost
from vlmfix.serve.writing import Piece, Scored, Writing

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Decoding:
    """How a request wants its answers decoded.

    Args:
        max_tokens: of each.
        temperature: 0 is greedy.
        top_p: share of probability that is kept.
        seed: of all answers; each has one of its own.
        stops: texts before which an answer ends.
        top_logprobs: likeliest tokens that are told beside the chosen one; None: no probabilities are.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Said:
    """What comes next in an answer.

    Args:
        index: of which.
        content: "" where there is no more of it yet.
        reasoning: all of it, as soon as it is certain.
        pieces: tokens of the content, where their probabilities are wanted.
    """

    index: int
    content: str = ""
    reasoning: str | None = None
    pieces: Sequence[Piece] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Args:
        index: which.
        content: all of it.
        reasoning: before it, if there is any.
        pieces: its tokens.
        reason: why it ended.
        tokens: number of tokens written.
        reasoning_tokens: those of the reasoning among them.
        activity: what each method did, by name.
        cost: of the answer.
    """

    index: int
    content: str
    reasoning: str | None
    pieces: Sequence[Piece]
    reason: FinishReason
    tokens: int
    reasoning_tokens: int
    activity: Mapping[str, Mapping[str, Any]]
    cost: Cost


Event = Said | Finished | RequestError


@dataclass(eq=False)
class Job:
    """A request.

    Args:
        plan: how the model decodes.
        conversation: what it is asked, pictures opened, under the methods of the plan.
        prompt_tokens: of it.
        opens_reasoning: whether the prompt opens a reasoning part.
        decoding: of its answers.
        steps: whether its answers come token by token, in a batch with others; else each is made alone.
        streams: whether pieces of answers are wanted.
        loop: in which events are awaited.
    """

    plan: Plan
    conversation: Conversation
    prompt_tokens: int
    opens_reasoning: bool
    decoding: Decoding
    steps: bool
    streams: bool
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def post(self, event: Event) -> None:
        """Hand over an event, from whatever thread."""
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


@dataclass(eq=False)
class Row:
    """One answer to a request, a row of a batch.

    Args:
        job: the request.
        index: of the answer.
        seed: of its sampling.
    """

    job: Job
    index: int
    seed: int
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    is_done: bool = False
    _said: int = 0
    _told: int = 0
    _reasoned: bool = False
    writing: Writing = field(init=False, repr=False)

    def begin(self, processor: ProcessorMixin) -> None:
        """Begin to write, or begin anew, where what was said stays said."""
        self.started = self.started or time.monotonic()
        self.is_done = False
        self.writing = Writing(processor, self.job.decoding.stops, opens_reasoning=self.job.opens_reasoning)

    def add(self, token: int, scored: Scored | None, *, ends: bool) -> FinishReason | None:
        """Take the next token; the reason to finish, if there is one.

        Args:
            token: id.
            scored: its probabilities, where they are wanted.
            ends: whether the token ends an answer.
        """
        self.writing.add(token, scored)
        is_last = len(self.writing.tokens) >= self.job.decoding.max_tokens
        if ends or is_last:
            self.writing.close(ended=ends)
        if self.job.streams:
            self._say()
        if ends or self.writing.stopped:
            return "stop"
        return "length" if is_last else None

    def finish(
        self,
        reason: FinishReason,
        activity: Mapping[str, Mapping[str, Any]],
        forwards: float,
        batch: int,
    ) -> None:
        """Hand over the answer.

        Args:
            reason: why it ended.
            activity: of the methods.
            forwards: passes per token.
            batch: answers that were decoded together.
        """
        self.is_done = True
        self.writing.close(ended=False)
        if self.job.streams:
            self._say()
        cost = Cost(
            forwards_per_token=forwards,
            queue_seconds=self.started - self.arrived,
            seconds=time.monotonic() - self.started,
            batch=batch,
        )
        written = self.writing
        self.job.post(
            Finished(
                self.index,
                written.content,
                written.reasoning,
                written.pieces,
                reason,
                len(written.tokens),
                written.reasoning_tokens,
                activity,
                cost,
            )
        )

    def _say(self) -> None:
        """Hand over what is new and certain."""
        content = self.writing.content
        pieces = self.writing.certain_pieces if self.job.decoding.top_logprobs is not None else []
        reasoning = None if self._reasoned else self.writing.reasoning
        new, told = content[self._said :], pieces[self._told :]
        if new or told or reasoning is not None:
            self.job.post(Said(self.index, new, reasoning, told))
        self._said = max(self._said, len(content))
        self._told = max(self._told, len(pieces))
        self._reasoned = self._reasoned or reasoning is not None
