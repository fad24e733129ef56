"""What the server takes on, who leaves early, and how it ends."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from PIL import Image

import vlmfix
from tests.support.serving import NAME, asking, data_url, serving
from vlmfix.serve import waiting, worker
from vlmfix.serve.limits import IN_FLIGHT, Limits
from vlmfix.serve.service import Service

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
LONG = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 1500,
    "temperature": 2,
}
SHORT = LONG | {"max_tokens": 1}
SEEDED = LONG | {"max_tokens": 100, "seed": 1}


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def run_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers not end by themselves."""
    for each in service.workers:
        monkeypatch.setattr(each.model.generation_config, "eos_token_id", None)


@pytest.fixture
def endless(server: tuple[str, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that the model of the common server does not end."""
    run_on(server[1], monkeypatch)


@contextmanager
def counted(service: Service) -> Iterator[list[int]]:
    """Within the block, the sequences in each forward pass."""
    found: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        found.append(len(kwargs["input_ids"]))

    handles = [each.model.register_forward_pre_hook(note, with_kwargs=True) for each in service.workers]
    yield found
    for handle in handles:
        handle.remove()


def open_requests(service: Service) -> float | None:
    return service.metrics.registry.get_sample_value("vlmfix_open_requests")


def send(raw: socket.socket, fields: dict[str, Any], cut: int = 0) -> None:
    """Send a request, without the last bytes of its body, and leave its response unread."""
    content = json.dumps(fields)
    raw.sendall(
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n{content[: len(content) - cut]}".encode()
    )


def port_of(url: str) -> tuple[str, int]:
    return "127.0.0.1", int(url.rpartition(":")[2])


def test_a_body_has_a_size(loaded: tuple[Any, Any]) -> None:
    with serving(loaded, Limits(bytes=1000)) as (url, _):

        def sent(size: int, *, announced: bool) -> httpx.Response:
            content = json.dumps(SHORT).encode().ljust(size)
            pieces = (content[start : start + 100] for start in range(0, size, 100))
            headers = {"Content-Type": "application/json"}
            return httpx.post(url + CHAT, content=content if announced else pieces, headers=headers)

        assert sent(1000, announced=True).status_code == sent(1000, announced=False).status_code == 200
        for announced in (True, False):
            for size in (1001, 10**6):
                response = sent(size, announced=announced)
                assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        client = OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=NAME, messages=asking())  # type: ignore[arg-type]
        assert caught.value.status_code == 413
        with socket.create_connection(port_of(url)) as raw:  # type: ignore[arg-type]
            raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {'9' * 40}\r\n\r\n".encode())
            assert b" 4" in raw.recv(20)
        assert sent(1000, announced=True).status_code == 200


def test_too_many_requests_are_told_to_come_again(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(loaded, Limits(requests=2)) as (url, service), httpx.Client(timeout=60) as client:
        run_on(service, monkeypatch)

        def streamed() -> Any:
            return client.stream("POST", url + CHAT, json=LONG | {"stream": True})

        with streamed() as one, streamed() as other:
            assert one.status_code == other.status_code == 200
            refused = client.post(url + CHAT, json=SHORT)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert client.get(f"{url}/health").status_code == 200
        until(lambda: client.post(url + CHAT, json=SHORT).status_code == 200)


def test_time_is_limited(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(loaded, Limits(seconds=0.4, parallel=1)) as (url, service), counted(service) as steps:
        run_on(service, monkeypatch)
        late = httpx.post(url + CHAT, json=LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "timeout")
        until(lambda: httpx.post(url + CHAT, json=SHORT).status_code == 200)
        count = len(steps)
        lines = httpx.post(url + CHAT, json=LONG | {"stream": True}).text.strip().splitlines()
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        assert "data: [DONE]" not in lines
        assert len(steps) - count < 1000


def test_what_is_in_memory_at_once_is_limited(loaded: tuple[Any, Any]) -> None:
    with (
        serving(loaded, Limits(bytes=1000, pixels=10**6, parallel=1)) as (url, service),
        ExitStack() as stack,
    ):
        padding = 1000 - len(json.dumps(SHORT | {"user": ""}))
        for _ in range(IN_FLIGHT):
            raw = stack.enter_context(socket.create_connection(port_of(url)))
            send(raw, SHORT | {"user": "x" * padding}, cut=1)
        until(lambda: httpx.post(url + CHAT, json=SHORT).status_code == 429)
        stack.close()
        until(lambda: httpx.post(url + CHAT, json=SHORT).status_code == 200)
        with ExitStack() as pictures:
            for _ in range(IN_FLIGHT):
                pictures.enter_context(service.holding(10**6))
            fields = SHORT | {"messages": asking("?", data_url(png()))}
            assert httpx.post(url + CHAT, json=fields).status_code == 429
        assert httpx.post(url + CHAT, json=fields).status_code == 200


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def test_a_body_must_come_in_time(loaded: tuple[Any, Any]) -> None:
    with serving(loaded, Limits(seconds=0.5, parallel=1)) as (url, service):
        with socket.create_connection(port_of(url)) as raw:
            send(raw, SHORT, cut=10)
            for _ in range(3):
                time.sleep(0.1)
                raw.sendall(b" ")
            assert raw.recv(12) == b"HTTP/1.1 408"
        assert open_requests(service) == 0


@pytest.mark.usefixtures("endless")
def test_a_long_answer_does_not_keep_the_others_waiting(server: tuple[str, Service]) -> None:
    url, service = server
    with socket.create_connection(port_of(url)) as raw, counted(service) as steps:
        send(raw, LONG)
        until(lambda: len(steps) > 5)
        assert httpx.post(url + CHAT, json=SHORT, timeout=60).status_code == 200
        assert open_requests(service) == 1
    until(lambda: open_requests(service) == 0)


def test_the_weights_are_shared(server: tuple[str, Service]) -> None:
    first, second = (each.model for each in server[1].workers)
    assert first is not second
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("plan", ["", ":baseline.beam"])
def test_nobody_works_for_a_client_that_left(server: tuple[str, Service], stream: bool, plan: str) -> None:
    url, service = server
    with counted(service) as steps:
        with socket.create_connection(port_of(url)) as raw:
            temperature = 0 if plan else 2
            send(raw, LONG | {"model": NAME + plan, "stream": stream, "temperature": temperature})
            until(lambda: len(steps) > 5)
        until(lambda: open_requests(service) == 0)
        time.sleep(0.1)
        count = len(steps)
        time.sleep(0.2)
        assert len(steps) == count < 1000


@pytest.mark.usefixtures("endless")
def test_an_answer_leaves_when_its_client_does_and_the_others_go_on(
    client: OpenAI, server: tuple[str, Service]
) -> None:
    def text(stream: Any) -> str:
        return "".join(each.choices[0].delta.content or "" for each in stream)

    settings: dict[str, Any] = SEEDED | {"stream": True}
    expected = text(client.chat.completions.create(**settings))
    streams = [client.chat.completions.create(**settings | {"seed": seed}) for seed in (1, 2)]
    next(streams[1])
    streams[1].close()
    assert text(streams[0]) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("endless")
def test_a_slow_client_blocks_nobody(server: tuple[str, Service]) -> None:
    """Its answer is larger than all buffers between them, and still finished."""
    url, service = server
    logprobs = {"logprobs": True, "top_logprobs": 20}
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(port_of(url))
        with counted(service) as steps:
            send(raw, LONG | {"stream": True, "n": 16, "max_tokens": 150, **logprobs})
            until(lambda: sum(steps) == 16 * 150, 60)
        assert raw.recv(12) == b"HTTP/1.1 200"  # and not one byte more
        assert httpx.post(url + CHAT, json=SHORT, timeout=60).status_code == 200
        assert open_requests(service) == 1
    until(lambda: open_requests(service) == 0)


def test_a_batch_that_fails_fails_for_whom_it_must(
    loaded: tuple[Any, Any], server: tuple[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is too small for a batch, and a request that no batch could answer."""
    stock, sizes = worker.answer_batch, list[int]()

    def answer_batch(model: Any, processor: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        if any("fail" in each.question.text for each in batch):
            raise RuntimeError("a bug")
        return stock(model, processor, batch, *args, **kwargs)

    monkeypatch.setattr(worker, "answer_batch", answer_batch)
    monkeypatch.setattr(waiting, "WINDOW", 0.5)  # so that they are one batch on a busy machine, too

    def ask(text: str) -> dict[str, Any]:
        fields = SHORT | {"messages": [{"role": "user", "content": text}], "max_tokens": 5, "temperature": 0}
        found: dict[str, Any] = httpx.post(server[0] + CHAT, json=fields, timeout=60).json()
        return found

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, ["Hello"] * 3 + ["fail"] + ["Hello"] * 4))
    bad = answers.pop(3)
    assert bad["error"]["message"] == "the server failed (RuntimeError); its log says more"
    expected = vlmfix.generate(*loaded, None, "Hello", max_new_tokens=5)
    assert [each["choices"][0]["message"]["content"] for each in answers] == [expected] * 7
    assert max(sizes) > 2


def test_scores_that_are_no_numbers_are_no_answer(server: tuple[str, Service], client: OpenAI) -> None:
    heads = [each.model.get_output_embeddings() for each in server[1].workers]
    handles = [each.register_forward_hook(lambda _, args, output: output * float("nan")) for each in heads]
    settings: dict[str, Any] = {"model": NAME, "messages": asking(), "max_tokens": 5}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="NaN"):
            list(client.chat.completions.create(**settings, stream=stream))
    for handle in handles:
        handle.remove()


def test_metrics(server: tuple[str, Service]) -> None:
    httpx.post(server[0] + CHAT, json=SHORT, timeout=60)
    for path in ("/x", "/y", "/v1/models/a", "/v1/models/b"):
        httpx.get(server[0] + path)
    text = httpx.get(f"{server[0]}/metrics").text
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(found['vlmfix_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    assert float(found['vlmfix_requests_total{path="other",status="404"}']) >= 2
    assert not any("/x" in each or "models/a" in each for each in found)
    for name in ("completion_tokens_total", "prompt_tokens_total", "batch_size_sum", "request_seconds_count"):
        assert float(found[f"vlmfix_{name}"]) >= 1
    assert float(found["vlmfix_open_requests"]) == float(found["vlmfix_waiting_answers"]) == 0


def test_the_end_is_graceful(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in progress is finished, what is new is refused, and the thread ends."""
    texts: list[str] = []

    def ask() -> None:
        answer = httpx.post(url + CHAT, json=SEEDED, timeout=60).json()
        texts.append(answer["choices"][0]["message"]["content"])

    with serving(loaded) as (url, service):
        run_on(service, monkeypatch)
        ask()
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: open_requests(service) == 1)
        service.is_stopping = True  # as a signal does
        refused = httpx.post(url + CHAT, json=SHORT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200
    thread.join()
    assert texts[0] == texts[1]
    assert not service.is_ready
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_grace_has_an_end(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(loaded, grace=1) as (url, service):
        run_on(service, monkeypatch)
        thread = threading.Thread(target=try_to_ask, args=(url,))
        thread.start()
        until(lambda: open_requests(service) == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 8
    thread.join()


def try_to_ask(url: str) -> None:
    with suppress(httpx.HTTPError):
        httpx.post(url + CHAT, json=LONG | {"n": 8}, timeout=60)
