"""`vlmfix serve`: a process that answers until a signal stops it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

pytest.importorskip("fastapi", reason="needs pip install 'vlmfix[serve]'")

import httpx
from fastapi import FastAPI

from tests.support.paths import ROOT
from vlmfix.cli.app import app
from vlmfix.serve.server import Server


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of the command line, and its address."""
    command = [sys.executable, "-m", "vlmfix", "serve", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found is not None, line
            yield running, found.group()
        finally:
            running.kill()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_stop_it(sent: signal.Signals) -> None:
    service = Mock(is_stopping=False)
    server, before = Server(FastAPI(), service, 1.0), signal.getsignal(sent)
    with server.capture_signals():
        signal.raise_signal(sent)
        assert (server.should_exit, server.force_exit, service.is_stopping) == (True, False, True)
    assert signal.getsignal(sent) is before


@pytest.mark.slow
def test_a_signal_ends_it_after_what_it_has() -> None:
    fields = {"model": "tiny-llava", "messages": [{"role": "user", "content": "Hello"}], "temperature": 2}
    with process("--api-key", "secret", "--max-tokens", "40") as (running, url):
        headers = {"Authorization": "Bearer secret"}
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=fields | {"stream": True}, headers=headers, timeout=60
        ) as response:
            running.send_signal(signal.SIGTERM)
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert running.wait(30) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""


def error(*options: str) -> str:
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    return line


def test_what_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in error("--port", str(taken.getsockname()[1]))
    assert "no folder" in error("--port", "0", "--allow-folder", str(tmp_path / "none"))
    assert "no recipe file" in error("--port", "0", "--recipe", "none.yaml")
    assert "is no time" in error("--timeout", "nan")
    assert "printable ASCII" in error("--api-key", "a b")
    assert "error" in error("--host", "256.0.0.1")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "vlmfix.serve.server", raising=False)
    result = CliRunner().invoke(app, ["serve"])
    assert "pip install 'vlmfix[serve]'" in result.stderr
