"""A server process: its socket, signals and the end."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from vlmfix.serve.service import Service


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 is one that is free.

    Raises:
        OSError: the address is taken, or not of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family)


class Server(uvicorn.Server):
    """A uvicorn that stops as a good neighbour: it is not ready at once, and finishes what it has.

    Args:
        app: to serve.
        service: of the application.
        grace: seconds for which requests in progress may go on after a signal.
    """

    def __init__(self, app: FastAPI, service: Service, grace: float) -> None:
        config = uvicorn.Config(
            app, log_level="warning", ws="none", timeout_graceful_shutdown=max(1, round(grace)), lifespan="on"
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second interruption does so at once."""
        self._service.is_stopping = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within the block, signals stop the server, and are no error afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def run(app: FastAPI, service: Service, listener: socket.socket, grace: float) -> None:
    """Serve until a signal comes."""
    Server(app, service, grace).run(sockets=[listener])
