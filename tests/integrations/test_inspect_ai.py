"""vlmfix as a provider of inspect_ai, by its own command line: what `vlmfix eval` answers, item by item."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import harnesses, jobs

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed; make test-integrations has it")
from inspect_ai.log import read_eval_log
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentAudio,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.tool import ToolInfo

import vlmfix

pytestmark = pytest.mark.slow
TASK = """
from pathlib import Path
import json

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import match


@task
def drawn_pope():
    rows = map(json.loads, Path("docs.jsonl").read_text().splitlines())
    return Task(
        dataset=[
            Sample(
                id=row["id"],
                input=[
                    ChatMessageUser(
                        content=[ContentImage(image=row["image"]), ContentText(text=row["question"])]
                    )
                ],
                target=row["target"],
            )
            for row in rows
        ],
        scorer=match(location="begin"),
    )
"""


def test_one_task_by_its_command_line(world: Path, tmp_path: Path) -> None:
    asked = harnesses.expected(world, tmp_path / "expected")
    rows = [{"id": id} | own for id, own in asked.items()]
    (tmp_path / "docs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "drawn_pope.py").write_text(TASK)
    command = ["eval", "drawn_pope.py", "--model", "vlmfix/tiny-llava", "-M", f"method={harnesses.METHOD}"]
    command += ["-M", f"set={harnesses.SETTING}", "--max-tokens", jobs.PROTOCOL.max_new_tokens]
    command += ["--log-dir", "logs", "--display", "none", "--log-format", "json"]
    result = harnesses.run(tmp_path, "inspect_ai", *command)
    assert result.returncode == 0, result.stderr
    [path] = (tmp_path / "logs").glob("*.json")
    log = read_eval_log(str(path))
    assert log.status == "success"
    found = {each.id: each.output.completion for each in log.samples}
    assert found == {id: each["answer"] for id, each in asked.items()}
    right = [each["answer"].strip().lower().startswith(each["target"]) for each in asked.values()]
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(sum(right) / len(right))


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, loaded: tuple[Any, Any]) -> Any:
    monkeypatch.setattr("vlmfix.adapters.hosted.load_model", lambda *_, **__: loaded)
    return lambda **options: get_model("vlmfix/tiny-llava", memoize=False, **options).api


def user(text: str, image: str | None = "docs/scene.png") -> list[Any]:
    shown = [] if image is None else [ContentImage(image=image)]
    return [ChatMessageUser(content=[*shown, ContentText(text=text)])]


async def ask(api: Any, messages: list[Any], tools: list[Any] | None = None, **config: Any) -> Any:
    return await api.generate(messages, tools or [], "auto", GenerateConfig(**config))


def test_questions_that_come_together_are_a_batch(
    provider: Any, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = provider(method="var", batch_size=4)
    sizes, answers = [], api._hosted.answers
    monkeypatch.setattr(
        api._hosted, "answers", lambda asked, *given: sizes.append(len(asked)) or answers(asked, *given)
    )
    prompts = [f"Is there a {thing} in the image?" for thing in ("dog", "cat", "fork", "car", "boat", "bus")]

    async def all_of_them() -> list[Any]:
        short = [ask(api, user(each), max_tokens=4) for each in prompts]
        return await asyncio.gather(*short, ask(api, user("Describe the image."), max_tokens=6))

    outputs = asyncio.run(all_of_them())
    assert sorted(sizes) == [1, 2, 4]
    alone = [vlmfix.generate(*loaded, "docs/scene.png", each, "var", max_new_tokens=4) for each in prompts]
    assert [each.completion.strip() for each in outputs[:6]] == alone
    assert outputs[6].stop_reason == "max_tokens"
    assert outputs[6].usage.output_tokens == 6
    assert outputs[0].stop_reason == "stop"


def test_a_broken_picture_fails_alone(provider: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    api = provider()

    async def both() -> list[Any]:
        pictures = (str(tmp_path / "broken.png"), "docs/scene.png")
        asked = [ask(api, user("What is it?", picture), max_tokens=4) for picture in pictures]
        return await asyncio.gather(*asked, return_exceptions=True)

    broken, whole = asyncio.run(both())
    assert "is not a readable image" in str(broken)
    assert whole.completion


def test_data_urls_turns_seeds_and_stops(provider: Any, loaded: tuple[Any, Any]) -> None:
    api = provider()
    content = base64.b64encode(Path("docs/scene.png").read_bytes()).decode()
    url = f"data:image/png;base64,{content}"

    def text(messages: list[Any], **config: Any) -> str:
        return str(asyncio.run(ask(api, messages, max_tokens=12, **config)).completion)

    plain = text(user("Describe the image."))
    assert text(user("Describe the image.", url)) == plain
    first, _, _ = plain.partition(" is")
    assert text(user("Describe the image."), stop_seqs=[" is"]) == first
    drawn = [text(user("Describe the image."), temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert text(user("Describe the image."), temperature=2.0) != text(
        user("Describe the image."), temperature=2.0
    )
    system = [{"role": "system", "content": "Be brief."}]
    turns = [*system, {"role": "user", "content": [{"type": "text", "text": "Is there a dog?"}]}]
    assert text(
        [ChatMessageSystem(content="Be brief."), *user("Is there a dog?", None)]
    ).strip() == vlmfix.generate(*loaded, messages=turns, max_new_tokens=12)


def test_refusals(provider: Any) -> None:
    api = provider()
    tool = ToolInfo(name="search", description="Searches.")
    refused: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("calls no tools, and there is search", user("?"), {"tools": [tool]}),
        ("does not know frequency_penalty", user("?"), {"frequency_penalty": 1.0}),
        ("does not know num_choices", user("?"), {"num_choices": 2}),
        ("top_p is 0", user("?"), {"temperature": 1.0, "top_p": 0.0}),
        ("is a URL, and nothing is downloaded", user("?", "https://a/b.png"), {}),
        ("holds no readable picture", user("?", "data:image/png;base64,QUJD"), {}),
        ("holds no readable picture: it is not in base64", user("?", "data:image/png,abc"), {}),
        (
            "the message holds audio",
            [ChatMessageUser(content=[ContentAudio(audio="a.wav", format="wav")])],
            {},
        ),
        ("the role of message 2 is 'tool'", [*user("?"), ChatMessageTool(content="found")], {}),
    ]
    for message, messages, options in refused:
        with pytest.raises(ValueError, match=message):
            asyncio.run(ask(api, messages, **options))
    for options, message in (
        ({"method": "nothing"}, "nothing"),
        ({"base_url": "http://127.0.0.1"}, "leave the base URL"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"method": "var", "recipe": "r"}, "recipe r has methods"),
    ):
        with pytest.raises(ValueError, match=message):
            provider(**options)
