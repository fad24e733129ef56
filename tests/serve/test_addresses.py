"""Where pictures may come from."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlmfix.serve import addresses
from vlmfix.serve.addresses import Allowed, public_address, read_address
from vlmfix.serve.errors import RequestError

FILE = b"not a picture, but a file"
URL = f"data:image/png;base64,{base64.b64encode(FILE).decode()}"
PRIVATE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "2002:7f00:1::1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
    "2001:0:7f00:1::1",
]


def refused(url: str, allowed: Allowed | None = None, most: int = 1000) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_address(url, allowed or Allowed(), most)
    return caught.value


def test_data_urls() -> None:
    assert read_address(URL, Allowed(), 1000) == FILE
    assert (
        read_address(URL.replace("data:image/png", "DATA:image/svg+xml;charset=utf-8"), Allowed(), 9) == FILE
    )
    for wrong in (
        "data:,x",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        f"{URL}*",
        f"{URL}A",
        "data:",
    ):
        assert refused(wrong).status_code == 400


@pytest.mark.parametrize(
    "url",
    [
        *("http://images.example.org/a.png", "https://images.example.org/a.png", "HTTP://127.0.0.1/"),
        *("file:///etc/passwd", "file://host/share", "/etc/passwd", "a.png", "", "ftp://a/b", "gopher://a"),
        *("http://", "http://[", "http://a:99999/", "http://a b/", "http://\u4f8b\u3048.jp/"),
        *("http://a/\r\nX: y", "javascript:1", "blob:x"),
    ],
)
def test_nothing_else_is_read_unless_it_is_allowed(url: str) -> None:
    error = refused(url)
    assert (error.status_code, error.code) == (400, "invalid_image_url")


def resolving(monkeypatch: pytest.MonkeyPatch, *found: str) -> None:
    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (each, port)) for each in found]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)


def test_private_addresses_are_refused_under_whatever_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in PRIVATE:
        resolving(monkeypatch, "93.184.215.14", each)
        error = refused("http://images.example.org/a.png", Allowed(frozenset({"images.example.org"})))
        assert "private address" in str(error.detail), each
    resolving(monkeypatch, "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert public_address("images.example.org", 80) == "93.184.215.14"


def test_a_name_is_allowed_with_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fetched(*given: Any) -> bytes:
        asked.append(given)
        return FILE

    monkeypatch.setattr(addresses, "_fetched", fetched)
    allowed = Allowed(frozenset({"a.org", "b.org:8080"}))
    for url in ("http://a.org", "https://A.ORG/x?y=1#z", "http://b.org:8080/", "http://user:pw@a.org:80/"):
        assert read_address(url, allowed, 10) == FILE
    assert asked == [
        ("http", "a.org", 80, "/", 10),
        ("https", "a.org", 443, "/x?y=1", 10),
        ("http", "b.org", 8080, "/", 10),
        ("http", "a.org", 80, "/", 10),
    ]
    others = ["a.org:8080", "a.org:443", "b.org", "sub.a.org", "a.org.evil", "a.org@evil.org", "a.org."]
    for url in [f"http://{each}/" for each in others]:
        assert refused(url, allowed).status_code == 400


class Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = {"/a.png": FILE, "/large": b"x" * 5000}.get(self.path)
        self.send_response(302 if self.path == "/moved" else 404 if found is None else 200)
        if self.path == "/moved":
            self.send_header("Location", "/a.png")
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host of pictures on this machine, whose address passes for a public one."""
    server = HTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(addresses, "public_address", lambda *_: "127.0.0.1")
    yield f"images.example.org:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_is_fetched(host: str) -> None:
    allowed = Allowed(frozenset({host}))
    assert read_address(f"http://{host}/a.png", allowed, 1000) == FILE
    assert "answers 404" in str(refused(f"http://{host}/none", allowed).detail)
    assert "redirects are not followed" in str(refused(f"http://{host}/moved", allowed).detail)
    assert refused(f"http://{host}/large", allowed).status_code == 413
    assert "cannot be fetched" in str(refused(f"https://{host}/a.png", allowed).detail)  # no TLS there


def test_files_in_allowed_folders(tmp_path: Path) -> None:
    inside = tmp_path / "pictures" / "more"
    inside.mkdir(parents=True)
    (inside / "a b.png").write_bytes(FILE)
    (tmp_path / "secret").write_bytes(b"key")
    (inside / "link").symlink_to(tmp_path / "secret")
    allowed = Allowed(folders=(tmp_path / "pictures",))
    place = (tmp_path / "pictures").as_uri()
    assert read_address(f"{place}/more/a%20b.png", allowed, 1000) == FILE
    outside = ["/../secret", "/more/link", "/%2e%2e/secret", "/more", "/none", "/a%00b", "x" * 5000]
    for url in [(tmp_path / "secret").as_uri(), *(f"{place}{each}" for each in outside)]:
        error = refused(url, allowed)
        assert "not in a folder" in str(error.detail)
        assert str(tmp_path) not in str(error.detail)
    assert refused(f"{place}/more/a%20b.png", allowed, most=5).status_code == 413
