"""What every request passes: its id, the API key, and limits of its body."""

from __future__ import annotations

import asyncio
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from vlmfix.serve.errors import RequestError
from vlmfix.serve.limits import IN_FLIGHT, Limits
from vlmfix.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_ID = re.compile(rb"[\w.:/+=@-]{1,128}", re.ASCII)
# What is read, and thrown away, of a body that is too large, so that the client gets to read why.
_DRAINED = 4
_DRAIN_SECONDS = 5.0


class Gate:
    """Middleware around the whole application.

    Args:
        app: that answers.
        limits: of bodies.
        metrics: to count responses in.
        api_key: that requests below `/v1` must bring; None: none.
    """

    def __init__(self, app: App, *, limits: Limits, metrics: Metrics, api_key: str | None) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        own = headers.get(b"x-request-id", b"")
        request_id = own if _ID.fullmatch(own) else uuid.uuid4().hex.encode()

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                route = scope.get("route")  # not the path itself, of which there are endless ones
                path = getattr(route, "path", "other")
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        body = _Body(receive, self._limits, self._room)
        try:
            self._check_key(scope["path"], headers)
            body.check_length(headers.get(b"content-length"))
        except RequestError as error:
            if error.status_code == 413:
                await body.drain()
            await JSONResponse(error.body, error.status_code, error.headers)(scope, receive, marked)
            return
        try:
            await self._app(scope, body.receive, marked)
        finally:
            self._held -= body.size

    def _check_key(self, path: str, headers: MutableMapping[bytes, bytes]) -> None:
        if self._key is None or not path.startswith("/v1"):
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._key):
            raise RequestError(
                401,
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _room(self, size: int) -> bool:
        """Take so many bytes into memory, if there is room."""
        if self._held + size > self._limits.bytes * IN_FLIGHT:
            return False
        self._held += size
        return True


class _Body:
    """The body of a request as it comes."""

    def __init__(self, receive: Receive, limits: Limits, room: Callable[[int], bool]) -> None:
        self.size = 0
        self._receive = receive
        self._limits = limits
        self._room = room
        self._deadline = asyncio.get_running_loop().time() + limits.seconds
        self._is_whole = False

    def check_length(self, announced: bytes | None) -> None:
        """Refuse a body that is announced as too large.

        Raises:
            RequestError: it is.
        """
        if announced is not None and announced.isdigit() and int(announced[:20]) > self._limits.bytes:
            raise self._too_large

    async def receive(self) -> Message:
        """The next message of the client."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(408, "the body of the request did not come in time", code="timeout") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self.size + size > self._limits.bytes:
                await self.drain()
                raise self._too_large
            if not self._room(size):
                raise RequestError(
                    429, "too much is being sent to the server; try again later", code="rate_limit_exceeded"
                )
            self.size += size
        return message

    async def drain(self) -> None:
        """Read on for a while; who is still sending does not read."""
        left = self._limits.bytes * _DRAINED
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while left > 0 and not self._is_whole:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._is_whole = not message.get("more_body", False)
        except TimeoutError:
            return

    @property
    def _too_large(self) -> RequestError:
        return RequestError(
            413,
            f"the body is larger than {self._limits.bytes} bytes, which is the limit; make pictures smaller",
            code="body_too_large",
        )
