"""One request and its response, from events to what OpenAI's clients read."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import vlmfix
from vlmfix.serve import responses, schema
from vlmfix.serve.errors import RequestError
from vlmfix.serve.job import Finished, Job, Said
from vlmfix.serve.metrics import Metrics
from vlmfix.serve.writing import Piece


class Exchange:
    """Turns the events of a job into a response.

    Args:
        request: of the client.
        job: that answers it.
        rows: answers that are made; a single one serves all choices.
        deadline: when the answer must be there, on the clock of the loop.
        seconds: that the request had.
        metrics: to count tokens in.
    """

    def __init__(
        self,
        request: schema.ChatRequest,
        job: Job,
        rows: int,
        deadline: float,
        seconds: float,
        metrics: Metrics,
    ) -> None:
        self._request = request
        self._job = job
        self._rows = rows
        self._choices = request.n or 1
        self._deadline = deadline
        self._seconds = seconds
        self._metrics = metrics
        self._finished: dict[int, Finished] = {}
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": f"vlmfix-{vlmfix.__version__}",
        }

    async def completion(self) -> responses.Completion:
        """The whole response.

        Raises:
            RequestError: there is none, or not in time.
        """
        async for _ in self._events():
            pass
        choices = [
            responses.Choice(
                index=index,
                message=responses.AnswerMessage(content=each.content, reasoning_content=each.reasoning),
                logprobs=self._logprobs(each.pieces),
                finish_reason=each.reason,
            )
            for index, each in sorted(self._finished.items())
        ]
        return responses.Completion(**self._head, choices=choices, usage=self._usage(), vlmfix=self._report())

    async def stream(self) -> AsyncIterator[bytes]:
        """The response as server-sent events.

        Raises:
            RequestError: before the first event, where there is no answer; later, it is an event.
        """
        events = self._events()
        event: Said | Finished | None = await anext(events)  # before the status is sent
        try:
            for index in range(self._choices):
                yield self._chunk(index, responses.Delta(role="assistant", content=""))
            while event is not None:
                if isinstance(event, Said):
                    delta = responses.Delta(content=event.content or None, reasoning_content=event.reasoning)
                    yield self._chunk(event.index, delta, pieces=event.pieces)
                elif isinstance(event, Finished):
                    is_last = len(self._finished) == self._choices
                    yield self._chunk(
                        event.index,
                        responses.Delta(),
                        finish_reason=event.reason,
                        vlmfix=self._report() if is_last else None,
                    )
                event = await anext(events, None)
        except RequestError as error:
            yield _sent(responses.ErrorBody.model_validate(error.body).model_dump_json())
            return
        if self._request.stream_options is not None and self._request.stream_options.include_usage:
            chunk = responses.Chunk(**self._head, choices=[], usage=self._usage())
            yield _sent(chunk.model_dump_json(exclude={"vlmfix"}))
        yield _sent("[DONE]")

    async def _events(self) -> AsyncIterator[Said | Finished]:
        """Events until all answers are there; what one answer says, all choices say that it stands for."""
        while len(self._finished) < self._choices:
            try:
                async with asyncio.timeout_at(self._deadline):
                    event = await self._job.events.get()
            except TimeoutError:
                raise RequestError(
                    503,
                    f"the answer was not there after {self._seconds:g} seconds; ask for fewer tokens, or "
                    "try again later",
                    code="timeout",
                ) from None
            if isinstance(event, RequestError):
                raise event
            indices = range(self._choices) if self._rows == 1 else [event.index]
            for index in indices:
                own = replace(event, index=index)
                if isinstance(own, Finished):
                    self._finished[index] = own
                    self._metrics.completion_tokens.inc(own.tokens)
                yield own
        self._metrics.prompt_tokens.inc(self._job.prompt_tokens)

    def _chunk(
        self,
        index: int,
        delta: responses.Delta,
        *,
        pieces: Sequence[Piece] = (),
        finish_reason: Any = None,
        vlmfix: responses.Report | None = None,
    ) -> bytes:
        choice = responses.ChunkChoice(
            index=index,
            delta=delta,
            logprobs=self._logprobs(pieces) if pieces else None,
            finish_reason=finish_reason,
        )
        chunk = responses.Chunk(**self._head, choices=[choice], vlmfix=vlmfix)
        left_out: Any = {"choices": {0: {"delta": {name for name, value in delta if value is None}}}}
        if vlmfix is None:
            left_out["vlmfix"] = True
        return _sent(chunk.model_dump_json(exclude=left_out))

    def _logprobs(self, pieces: Sequence[Piece]) -> responses.Logprobs | None:
        if self._job.decoding.top_logprobs is None:
            return None
        return responses.Logprobs(content=[_told(piece) for piece in pieces if piece.scored is not None])

    def _usage(self) -> responses.Usage:
        written = sum(each.tokens for each in self._finished.values())
        reasoned = sum(each.reasoning_tokens for each in self._finished.values())
        return responses.Usage(
            prompt_tokens=self._job.prompt_tokens,
            completion_tokens=written,
            total_tokens=self._job.prompt_tokens + written,
            completion_tokens_details={"reasoning_tokens": reasoned},
        )

    def _report(self) -> responses.Report:
        ended = [each for _, each in sorted(self._finished.items())]
        return responses.Report(
            method=self._job.plan.text,
            parameters={name: dict(own) for name, own in self._job.plan.chosen.items()},
            activity=[{name: dict(did) for name, did in each.activity.items()} for each in ended],
            cost=[each.cost for each in ended],
        )


def _sent(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def _told(piece: Piece) -> responses.TokenLogprob:
    assert piece.scored is not None
    others = zip(piece.alternatives, piece.scored.likeliest, strict=True)
    return responses.TokenLogprob(
        **_choice(piece.text, piece.scored.chosen.logprob),
        top_logprobs=[responses.TokenChoice(**_choice(text, each.logprob)) for text, each in others],
    )


def _choice(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
