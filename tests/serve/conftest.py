"""One server for the tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs pip install 'vlmfix[serve]'")
pytest.importorskip("openai", reason="needs pip install openai")

from openai import OpenAI

from tests.support.serving import serving
from vlmfix.serve.service import Service


@pytest.fixture(scope="session")
def server(loaded: tuple[Any, Any]) -> Iterator[tuple[str, Service]]:
    """Its address, and the service behind it."""
    with serving(loaded) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: tuple[str, Service]) -> OpenAI:
    return OpenAI(base_url=f"{server[0]}/v1", api_key="any", max_retries=0, timeout=60)
