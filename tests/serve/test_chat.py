"""Answers of the server, asked by the official client: those of `vlmfix.generate`, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from openai import OpenAI

import vlmfix
from tests.support.serving import NAME, SCENE, asking
from vlmfix.serve.schema import MOST_CHOICES

pytestmark = pytest.mark.slow

PLANS = {
    "": None,
    ":greedy": None,
    ":var": "var",
    ":var+vcd": "var+vcd",
    ":auto": "auto",  # with beams
    ":tiny-llava.yaml": "auto",
    ":opera": "opera",  # a loop of its own
    ":carve": "carve",  # several passes
    ":baseline.prompt_bias": "baseline.prompt_bias",  # another question
    ":baseline.resize": vlmfix.list_methods()["baseline.resize"](kept_tokens=16),  # another picture
}


def ask(client: OpenAI, **settings: Any) -> Any:
    settings = {"model": NAME, "messages": asking(), "max_tokens": 12} | settings
    return client.chat.completions.create(**settings)


def joined(chunks: Iterable[Any], index: int = 0) -> str:
    return "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index
    )


@pytest.mark.parametrize("plan", PLANS)
def test_an_answer_is_that_of_generate(client: OpenAI, loaded: tuple[Any, Any], plan: str) -> None:
    settings: dict[str, Any] = {"model": NAME + plan}
    if plan == ":baseline.resize":
        settings["extra_body"] = {"method": {"kept_tokens": 16}}
    expected = vlmfix.generate(*loaded, SCENE, "Describe the image.", PLANS[plan], max_new_tokens=12)
    answer = ask(client, **settings)
    assert answer.choices[0].message.content == expected
    assert answer.model == settings["model"]
    chunks = list(ask(client, **settings, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == expected
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(chunks[-1].usage, name) == getattr(answer.usage, name)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [each for each in reasons if each] == [answer.choices[0].finish_reason]
    assert reasons[-1] is not None
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {answer.id}


def test_usage_and_the_reason_to_stop(client: OpenAI, loaded: tuple[Any, Any]) -> None:
    written: list[Any] = []
    vlmfix.generate(*loaded, SCENE, "Describe the image.", max_new_tokens=100, on_answer=written.append)
    whole, cut = ask(client, max_tokens=100), ask(client, max_tokens=None, max_completion_tokens=3)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == len(written[0].token_ids)
    assert whole.usage.prompt_tokens == written[0].prompt_tokens
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3
    exact = ask(client, max_tokens=len(written[0].token_ids))
    assert exact.choices[0].finish_reason == "stop"


def test_several_turns(client: OpenAI, loaded: tuple[Any, Any]) -> None:
    words = [
        ("system", "Be brief."),
        ("user", "Describe the image."),
        ("assistant", "A table."),
        ("user", "?"),
    ]
    own = [{"role": role, "content": text} for role, text in words]
    own[1]["content"] = [{"type": "text", "text": words[1][1]}, {"type": "image", "path": SCENE}]  # type: ignore[assignment]
    expected = vlmfix.generate(*loaded, messages=own, method="var", max_new_tokens=12)
    asked: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in words]
    asked[0] = {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}
    asked[1]["content"] = [{"type": "text", "text": words[1][1]}, asking()[0]["content"][0]]
    asked[2] |= {"refusal": None, "tool_calls": None, "annotations": []}  # as clients send answers back
    answer = ask(client, model=f"{NAME}:var", messages=asked)
    assert answer.choices[0].message.content == expected


def test_a_stop_text_ends_an_answer_before_it(client: OpenAI) -> None:
    whole = ask(client, max_tokens=60).choices[0].message.content
    for stop in (["plants and"], " and", ["zebra", "image shows", "shows"], "."):
        first = min(whole.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each in whole)
        for model in (NAME, f"{NAME}:baseline.beam"):
            answer = ask(client, model=model, stop=stop, max_tokens=60)
            if model == NAME:
                assert answer.choices[0].message.content == whole[:first].strip()
            assert answer.choices[0].finish_reason == "stop"
            assert joined(ask(client, model=model, stop=stop, max_tokens=60, stream=True)) == (
                answer.choices[0].message.content
            )
    assert ask(client, stop=[" and"], max_tokens=60).usage.completion_tokens < 12
    assert ask(client, stop=[], max_tokens=60).choices[0].message.content == whole


def test_sampling_depends_on_the_seed_alone(client: OpenAI) -> None:
    def texts(**settings: Any) -> list[str]:
        answer = ask(client, temperature=1.2, **settings)
        assert [choice.index for choice in answer.choices] == list(range(settings.get("n", 1)))
        return [choice.message.content for choice in answer.choices]

    several = texts(seed=7, n=4)
    assert len(set(several)) > 1
    assert texts(seed=7) == several[:1]
    assert texts(seed=8, n=4) != several
    assert len({texts()[0] for _ in range(4)}) > 1
    chunks = list(ask(client, temperature=1.2, seed=7, n=4, stream=True))
    assert [joined(chunks, index) for index in range(4)] == several
    assert texts(seed=-1, top_p=1e-6) == [ask(client).choices[0].message.content]  # nothing but the best


def test_greedy_choices_are_one_answer(client: OpenAI) -> None:
    answer = ask(client, n=3)
    assert len({choice.message.content for choice in answer.choices}) == 1
    assert [len(answer.vlmfix[name]) for name in ("activity", "cost")] == [3, 3]
    assert answer.usage.completion_tokens == 3 * ask(client).usage.completion_tokens
    chunks = list(ask(client, n=3, stream=True))
    assert {joined(chunks, index) for index in range(3)} == {answer.choices[0].message.content}


def test_a_method_tells_what_it_did(client: OpenAI, loaded: tuple[Any, Any]) -> None:
    method = vlmfix.VAR(moved_fraction=0.9)
    vlmfix.generate(*loaded, SCENE, "Describe the image.", method, max_new_tokens=12)
    [own] = method.latest_edit_stats()
    for stream in (False, True):
        answer = ask(
            client, model=f"{NAME}:var", extra_body={"method": {"moved_fraction": 0.9}}, stream=stream
        )
        report = ([chunk for chunk in answer if chunk.choices][-1] if stream else answer).vlmfix
        assert report["method"] == "var"
        assert report["parameters"] == {"var": {"moved_fraction": 0.9}}
        [did] = report["activity"]
        assert did["var"]["edited"] == own.edited > 0
        assert (did["var"]["steps"], did["var"]["eligible"]) == (own.steps, own.eligible)
        [cost] = report["cost"]
        assert cost["forwards_per_token"] == 1
    both = ask(client, model=f"{NAME}:var+vcd", extra_body={"method": {"vcd": {"alpha": 0.3}}})
    assert both.vlmfix["parameters"] == {"var": {}, "vcd": {"alpha": 0.3}}
    assert both.vlmfix["cost"][0]["forwards_per_token"] == 2


def test_activity_is_that_of_the_answer_and_not_of_its_batch(client: OpenAI) -> None:
    """An answer that a stop text or its length ends has no later steps."""
    alone = ask(client, model=f"{NAME}:var", max_tokens=4).vlmfix["activity"][0]["var"]
    chunks = client.chat.completions.create(
        model=f"{NAME}:var", messages=asking(), max_tokens=30, temperature=1, n=6, stream=True, stop=["cat"]
    )
    reports = [chunk.vlmfix for chunk in chunks if getattr(chunk, "vlmfix", None)]
    steps = [did["var"]["steps"] for did in reports[0]["activity"]]
    assert alone["steps"] == 4
    assert len(set(steps)) > 1
    assert max(steps) <= 30


def test_probabilities(client: OpenAI) -> None:
    answer = ask(client, model=f"{NAME}:vcd", logprobs=True, top_logprobs=3, max_tokens=60)
    told = answer.choices[0].logprobs.content
    assert "".join(each.token for each in told).strip() == answer.choices[0].message.content
    assert answer.usage.completion_tokens == len(told) + 1  # the token that ends it is no text
    for each in told:
        assert bytes(each.bytes).decode() == each.token
        likeliest = [other.logprob for other in each.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert each.logprob == likeliest[0] <= 0  # greedy
        assert each.top_logprobs[0].token == each.token
    chunks = list(ask(client, model=f"{NAME}:vcd", logprobs=True, top_logprobs=3, max_tokens=60, stream=True))
    streamed = [
        each
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for each in choice.logprobs.content
    ]
    assert streamed == told
    drawn = ask(client, logprobs=True, temperature=2, seed=3, n=2, stop=["."])
    for choice in drawn.choices:
        assert "".join(each.token for each in choice.logprobs.content).strip() == choice.message.content
        assert all(each.top_logprobs == [] for each in choice.logprobs.content)
    assert ask(client).choices[0].logprobs is None


def test_models(client: OpenAI, loaded: tuple[Any, Any]) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[0] == NAME
    assert {
        f"{NAME}:{each}" for each in ("var", "vcd", "carve", "baseline.beam", "auto", "tiny-llava.yaml")
    } <= set(ids)
    assert f"{NAME}:act" not in ids  # nobody knows its heads
    for each in ids[:: len(ids) // 5]:
        assert client.models.retrieve(each).id == each
    assert client.models.retrieve(f"{NAME}:var+vcd").object == "model"
    assert MOST_CHOICES == 16  # as the documentation says
