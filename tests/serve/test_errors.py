"""Requests that are refused: with the status, and the error object that clients read."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.support.serving import NAME, SCENE, asking, data_url, serving
from vlmfix.serve.service import Service

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": HELLO, "max_tokens": 2} | fields


def chat(server: tuple[str, Service], content: Any, **headers: str) -> httpx.Response:
    """The response to a body, of which Python's JSON may make what no JSON is."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.post(
        server[0] + CHAT, content=content, headers={"Content-Type": "application/json", **headers}, timeout=60
    )


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object of a response, which has all its keys and one line."""
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    assert found["message"].isprintable()
    assert len(found["message"]) <= 2000
    return found


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, ""),
    ({"stream_options": {"include_usage": True}}, ""),
    ({"stream": "yes"}, "stream"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, ""),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.user.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.user.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.user.content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.user.content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages.0.user.tool_calls"),
    ({"model": 5}, "model"),
    ({"model": None}, "model"),
    ({"method": "var"}, "method"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 100}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_k": 5}, "top_k"),
    ({"max_token": 5}, "max_token"),
    ({"\ud800": 5}, ""),
    ({"a\nb": 5}, "a b"),
    ({"x" * 10**5: 5}, "xxx"),
]


@pytest.mark.parametrize(("fields", "param"), FIELDS, ids=[str(each)[:60] for each, _ in FIELDS])
def test_a_wrong_field_is_named(server: tuple[str, Service], fields: dict[str, Any], param: str) -> None:
    response = chat(server, body(**fields))
    found = error_of(response)
    assert (response.status_code, found["code"]) == (422, "invalid_field"), found
    assert (found["param"] or "").startswith(param)
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b"{}" * 2,
        b"\x00",
    ],
    ids=lambda content: str(content[:12]),
)
def test_what_is_no_json_object_is_refused(server: tuple[str, Service], content: bytes) -> None:
    response = chat(server, content)
    assert response.status_code in (400, 422)
    error_of(response)


def test_the_body_must_say_that_it_is_json(server: tuple[str, Service]) -> None:
    """A page in a browser could else send one without asking."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = httpx.post(server[0] + CHAT, content=json.dumps(body()), headers={"Content-Type": kind})
        assert response.status_code == 422
        assert "Content-Type: application/json" in error_of(response)["message"]


SEVERAL: list[tuple[int, dict[str, Any], str]] = [
    (404, {"model": "gpt-4o"}, "there is no model 'gpt-4o'"),
    (404, {"model": f"{NAME}:varr"}, "did you mean 'var'"),
    (404, {"model": f"{NAME}:nowhere.yaml"}, "no recipe"),
    (404, {"model": f"{NAME}:\ud83d\ude00\u0007"}, "unknown method"),
    (400, {"model": f"{NAME}:var", "method": {"moved_fraction": 5}}, "moved_fraction is 5"),
    (400, {"model": f"{NAME}:var", "method": {"moved_fraction": "\ud800"}}, "moved_fraction"),
    (400, {"model": f"{NAME}:vti", "method": {"directions": "/etc/passwd"}}, "operator"),
    (400, {"model": f"{NAME}:paint", "messages": asking()}, "local_boost"),
    (422, {"model": f"{NAME}:vcd+vdd"}, "defines the logits of this model already"),
    (422, {"model": f"{NAME}:var+opera", "logprobs": True}, "logprobs"),
    (422, {"model": f"{NAME}:carve", "logprobs": True}, "logprobs"),
    (422, {"model": f"{NAME}:auto", "temperature": 1}, "temperature"),
    (422, {"model": f"{NAME}:baseline.beam", "method": {"num_beams": 500}}, "500 beams"),
    (400, {"messages": [{"role": "assistant", "content": "x"}]}, "end with the user's question"),
    (400, {"messages": [*HELLO, {"role": "system", "content": "x"}, *HELLO]}, "only the first message"),
    (400, {"messages": [{"role": "user", "content": "<image>"}]}, "stands for a picture"),
    (400, {"messages": [{"role": "user", "content": "\ud800"}]}, "lone surrogate"),
    (400, {"messages": [{"role": "user", "content": "a b " * 3000}]}, "room for 2048"),
    (400, {"messages": [{"role": "user", "content": "a" * 10**6}]}, "room for 2048"),
    (400, {"max_tokens": 2048}, "room for 2048"),
    (400, {"temperature": 1e-300}, "temperature is 1e-300"),
    (400, {"max_tokens": 4097}, "at most 4096"),
    (400, {"messages": asking("?", "http://127.0.0.1/a.png")}, "not fetched"),
    (400, {"messages": asking("?", "data:image/png;base64,AAAA")}, "picture 1 is not a readable"),
    (400, {"messages": asking("?", data_url(SCENE.read_bytes()[:5000]))}, "not a readable image"),
    (400, {"messages": asking("?", data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n", "eps"))}, "PNG, JPEG, WEBP, GIF"),
]


@pytest.mark.parametrize(
    ("status", "fields", "words"), SEVERAL, ids=[str(each[1:])[-50:] for each in SEVERAL]
)
def test_what_cannot_be_followed_is_told(
    server: tuple[str, Service], status: int, fields: dict[str, Any], words: str
) -> None:
    for stream in (False, True):
        response = chat(server, body(**fields, stream=stream))
        assert (response.status_code, words in error_of(response)["message"]) == (status, True), response.text
        assert response.headers["content-type"] == "application/json"


def png(width: int, height: int) -> bytes:
    """A picture of one colour, in a file that is far smaller."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(10**7, (1 + (width + 7) // 8) * height)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8000, 8000), (30000, 30000), (2**31 - 1, 2**31 - 1), (2**20, 2**13)])
def test_too_many_pixels_are_refused_before_they_are_made(
    server: tuple[str, Service], size: tuple[int, int]
) -> None:
    response = chat(server, body(messages=asking("?", data_url(png(*size)))))
    assert (response.status_code, error_of(response)["code"]) == (413, "image_too_large")


@pytest.mark.parametrize("size", [(1, 2**20), (2**20, 1), (300, 61000)])
def test_a_strip_is_refused(server: tuple[str, Service], size: tuple[int, int]) -> None:
    """Scaled up until its shorter side fills the vision encoder, it would take gigabytes."""
    response = chat(server, body(messages=asking("?", data_url(png(*size)))))
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_image")


def test_many_pictures_count_as_pixels(server: tuple[str, Service]) -> None:
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "PNG")
    response = chat(server, body(messages=asking("?", *[data_url(tiny.getvalue())] * 3000)))
    assert response.status_code == 413
    few = chat(server, body(messages=asking("?", *[data_url(tiny.getvalue())] * 2)))
    assert few.status_code == 200


def test_other_paths_and_ways(server: tuple[str, Service]) -> None:
    assert error_of(httpx.get(f"{server[0]}/v1/nothing"))
    assert httpx.get(f"{server[0]}/v1/nothing").status_code == 404
    wrong = httpx.get(server[0] + CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    error_of(wrong)
    assert httpx.get(f"{server[0]}/v1/models/x%2Fy").status_code == 404
    assert (
        httpx.get(f"{server[0]}/health").json() == httpx.get(f"{server[0]}/ready").json() == {"status": "ok"}
    )


def test_request_ids(server: tuple[str, Service]) -> None:
    own = httpx.get(f"{server[0]}/health", headers={"X-Request-ID": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    for bad in ("x" * 500, "a b", ""):
        other = httpx.get(f"{server[0]}/health", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert len(other) == 32


def test_the_key(loaded: tuple[Any, Any]) -> None:
    with serving(loaded, api_key="secret") as (url, _):
        for key in ("wrong", "secret2", "\u00e9"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            for path in ("/v1/models", "/v1/nothing", CHAT):
                response = httpx.request("POST" if path == CHAT else "GET", url + path, headers=headers)
                assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "secret"}).status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            OpenAI(base_url=f"{url}/v1", api_key="no", max_retries=0).models.list()
        assert OpenAI(base_url=f"{url}/v1", api_key="secret").models.retrieve(NAME).id == NAME


def test_the_client_raises_its_own_errors(client: OpenAI) -> None:
    for kind, settings in (
        (openai.NotFoundError, {"model": "other"}),
        (openai.BadRequestError, {"max_tokens": 10**6}),
        (openai.UnprocessableEntityError, {"temperature": 3}),
    ):
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**(body() | settings))  # type: ignore[call-overload]
        assert caught.value.body["message"]  # type: ignore[index]
        assert caught.value.request_id
