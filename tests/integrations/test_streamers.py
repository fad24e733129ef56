"""Streamers of transformers: text arrives token by token, also from a thread."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from transformers import PreTrainedModel, TextIteratorStreamer

import vlmfix
from tests.support import families
from tests.support.methods import attached

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_streamer_in_a_thread_of_the_block(models: dict[str, PreTrainedModel], wrapped: bool) -> None:
    llava = models["llava"]
    inputs = families.prompt("llava", llava, (1,))
    with attached("var", llava):
        expected = llava.generate(**inputs, max_new_tokens=8, do_sample=False)
        streamer = TextIteratorStreamer(families.PROCESSOR.tokenizer, skip_prompt=True, timeout=10)
        target = (lambda **kwargs: llava.generate(**kwargs)) if wrapped else llava.generate
        given = {**inputs, "max_new_tokens": 8, "do_sample": False, "streamer": streamer}
        threading.Thread(target=target, kwargs=given).start()
        streamed = "".join(streamer)
    new = expected[0, inputs["input_ids"].shape[1] :]
    assert streamed.split() == families.PROCESSOR.tokenizer.decode(new).split()


@pytest.mark.parametrize("method", [None, "var", "vcd", "vhr", "fastv", "dola"])
def test_text_in_text_streamed_out(method: str | None, loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    streamer = TextIteratorStreamer(
        processor.tokenizer, skip_prompt=True, timeout=10, skip_special_tokens=True
    )
    asked = (model, processor, "docs/scene.png", "Describe the image.", method)
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(vlmfix.generate(*asked, max_new_tokens=16, streamer=streamer))
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces).strip() == found[0] == vlmfix.generate(*asked, max_new_tokens=16)
    assert len([piece for piece in pieces if piece]) > 4
