"""The application: paths, and how a request for answers goes through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException

import vlmfix
from vlmfix.serve import responses, schema
from vlmfix.serve.errors import (
    STATUSES,
    RequestError,
    answer_failure,
    answer_http_error,
    answer_invalid,
    request_error,
)
from vlmfix.serve.exchange import Exchange
from vlmfix.serve.gate import Gate
from vlmfix.serve.job import Job
from vlmfix.serve.service import Service

_LATE = 5.0
"""Seconds for which a client may go on to read a stream after the time limit."""
_GONE = 499

T = TypeVar("T")


class _GoneError(Exception):
    """The client has left."""


def create_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The application that serves a model, for uvicorn or any other ASGI server.

    Args:
        service: not started; the application starts and stops it.
        api_key: that requests below `/v1` must bring; None: none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="vlmfix serve",
        version=vlmfix.__version__,
        description="Vision-language models with hallucination mitigation, by the API of OpenAI.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Gate, limits=service.limits, metrics=service.metrics, api_key=api_key)
    app.add_exception_handler(StarletteHTTPException, answer_http_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_failure)
    _add_models(app, service)
    _add_chat(app, service)
    _add_health(app, service)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of responses that are no answer."""
    return {each: {"model": responses.ErrorBody, "description": STATUSES[each]} for each in statuses}


def _add_models(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    def entry(name: str) -> responses.Model:
        return responses.Model(id=name, created=created, owned_by="vlmfix")

    @app.get("/v1/models", responses=_errors(401))
    async def list_models() -> responses.ModelList:
        """The model, alone, with each method that works on it as it is, and with each recipe."""
        return responses.ModelList(data=list(map(entry, service.catalogue.ids)))

    @app.get("/v1/models/{model:path}", responses=_errors(400, 401, 404, 422))
    async def retrieve_model(model: str) -> responses.Model:
        """Whether a name, methods joined by `+` included, is one of a model."""
        try:
            service.catalogue.plan(model).make_methods()
        except Exception as error:
            raise request_error(error) from error
        return entry(model)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> responses.Health:
        """Whether the process answers at all."""
        return responses.Health()

    @app.get("/ready", responses=_errors(503))
    async def ready() -> responses.Health:
        """Whether it takes requests: the model is loaded, its threads work, and nobody stops it."""
        if not service.is_ready:
            raise RequestError(503, "the server is stopping, or a thread of it has ended", code="stopping")
        return responses.Health()

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Metrics for Prometheus."}},
    )
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=responses.Completion,
        responses={
            200: {
                "description": "The answers; with stream=true, server-sent events of chunks, [DONE] last.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **_errors(400, 401, 404, 408, 413, 422, 429, 500, 503),
        },
    )
    async def chat_completions(request: Request, body: schema.ChatRequest) -> Response:
        """Answer the last message of a conversation about pictures."""
        with ExitStack() as stack:
            try:
                return await _answered(service, request, body, stack)
            except _GoneError:
                service.metrics.disconnects.inc()
                return Response(status_code=_GONE)
            except Exception as error:
                raise request_error(error) from error


async def _answered(
    service: Service, request: Request, body: schema.ChatRequest, stack: ExitStack
) -> Response:
    """The response to a request; what is entered into the stack is left when the response has been sent."""
    began = time.monotonic()
    deadline = asyncio.get_running_loop().time() + service.limits.seconds
    stack.enter_context(service.admitted())
    stack.callback(lambda: service.metrics.seconds.observe(time.monotonic() - began))
    images, pixels = await _unless_gone(request, service.look_at(body))
    stack.enter_context(service.holding(pixels))
    job, rows = await _unless_gone(request, service.prepare(body, images))
    stack.callback(_cancel, job)
    service.submit(rows)
    exchange = Exchange(body, job, len(rows), deadline, service.limits.seconds, service.metrics)
    if not body.stream:
        completion = await _unless_gone(request, exchange.completion())
        return Response(completion.model_dump_json(), media_type="application/json")
    chunks = exchange.stream()
    first = await _unless_gone(request, anext(chunks))
    service.metrics.first_seconds.observe(time.monotonic() - began)
    return _EventStream(first, chunks, stack.pop_all(), deadline + _LATE, service.metrics.disconnects.inc)


def _cancel(job: Job) -> None:
    """Let the worker leave out what is left to do; nothing, where all is done."""
    job.cancelled = True


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives.

    Raises:
        _GoneError: the client left before.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _GoneError
    finally:
        for each in (task, gone):
            each.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events; whether they are read to the end or not, the request is over afterwards."""

    def __init__(
        self,
        first: bytes,
        rest: AsyncIterator[bytes],
        stack: ExitStack,
        deadline: float,
        on_disconnect: Callable[[], None],
    ) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield first
            async for each in rest:
                yield each
            self._is_whole = True

        super().__init__(
            chunks(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._stack = stack
        self._deadline = deadline
        self._on_disconnect = on_disconnect
        self._is_whole = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._stack:
            try:
                async with asyncio.timeout_at(self._deadline):
                    await super().__call__(scope, receive, send)
            except TimeoutError:  # a client that does not read
                return
            finally:
                if not self._is_whole:
                    self._on_disconnect()
