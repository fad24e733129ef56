"""A burst of requests: none is lost, and every text is that of the request asked alone."""

from __future__ import annotations

import io
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from tests.support.serving import NAME, asking, data_url
from vlmfix.evaluation.datasets import render, sample_scene

REQUESTS, DIFFERENT, AT_ONCE = 200, 40, 32
PLANS = ("", ":var", ":vcd", ":fastv")


def pictures() -> list[str]:
    found = []
    for number in range(6):
        file = io.BytesIO()
        render(sample_scene(5, number)).save(file, "PNG")
        found.append(data_url(file.getvalue()))
    return found


def requests() -> list[dict[str, Any]]:
    """Questions of several lengths, about pictures or none, greedy and sampled, whole and streamed."""
    draw, shown = random.Random(0), pictures()
    found = []
    for number in range(DIFFERENT):
        plan = draw.choice(PLANS)
        text = draw.choice(
            ["Describe the image.", "Is there a dog?", "What is on the left of the couch? " * 5]
        )
        about = asking(text, *draw.sample(shown, draw.choice([1, 1, 2])))
        settings: dict[str, Any] = {
            "model": NAME + plan,
            "messages": about if draw.random() < 0.9 else [{"role": "user", "content": "Hello"}],
            "max_tokens": draw.choice([2, 3, 4]),
            "seed": number,
            "stream": draw.random() < 0.5,
        }
        if draw.random() < 0.5:
            settings |= {"temperature": draw.choice([0.7, 1.0]), "top_p": draw.choice([0.9, 1.0])}
        if draw.random() < 0.2:
            settings["stop"] = ["cat", " a"]
        found.append(settings)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::vlmfix.InactiveMethodWarning")
def test_every_text_is_that_of_the_request_alone(client: OpenAI) -> None:
    batches = list[float]()

    def ask(settings: dict[str, Any]) -> tuple[Any, ...]:
        answer = client.chat.completions.create(**settings)
        if not settings["stream"]:
            batches.append(answer.vlmfix["cost"][0]["batch"])
            choice = answer.choices[0]
            return choice.message.content, choice.finish_reason, answer.vlmfix["activity"][0].keys()
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return text, chunks[-1].choices[0].finish_reason, chunks[-1].vlmfix["activity"][0].keys()

    asked = requests()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        together = list(pool.map(ask, asked * (REQUESTS // DIFFERENT)))
    assert len(together) == REQUESTS
    assert sum(batches) / len(batches) > 1.5
    assert together == list(map(ask, asked)) * (REQUESTS // DIFFERENT)
