"""A server on a free port of this machine, in a thread, and requests to it."""

from __future__ import annotations

import base64
import copy
import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from vlmfix.serve.addresses import Allowed
from vlmfix.serve.app import create_app
from vlmfix.serve.limits import Limits
from vlmfix.serve.naming import Catalogue
from vlmfix.serve.server import Server, bound_socket
from vlmfix.serve.service import Service

NAME = "tiny-llava"
SCENE = ROOT / "docs" / "scene.png"


@contextmanager
def serving(
    loaded: tuple[Any, Any],
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    allowed: Allowed | None = None,
    recipes: tuple[Path, ...] = (),
    grace: float = 10.0,
) -> Iterator[tuple[str, Service]]:
    """Within the block, a copy of a model is served, which the test has for itself: the address, and the
    service behind it."""
    loaded = copy.deepcopy(loaded)
    service = Service(*loaded, Catalogue(*loaded, NAME, recipes), limits or Limits(), allowed or Allowed())
    with bound_socket("127.0.0.1", 0) as listener:
        server = Server(create_app(service, api_key=api_key), service, grace)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(grace + 120)
            if thread.is_alive():
                faulthandler.dump_traceback()
                raise AssertionError("the server did not end; stderr has where its threads are")


def data_url(content: bytes, kind: str = "png") -> str:
    """A picture in its address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def asking(text: str = "Describe the image.", *urls: str) -> list[dict[str, Any]]:
    """A question of one turn, about the demo scene unless others are given."""
    shown = [
        {"type": "image_url", "image_url": {"url": url}} for url in urls or (data_url(SCENE.read_bytes()),)
    ]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
