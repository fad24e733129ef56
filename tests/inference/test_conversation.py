"""Conversations: messages as `apply_chat_template` takes them, their order in the prompt, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import vlmfix
from tests.inference.test_turns import TEMPLATES, Processor
from vlmfix.engine.caches import with_cache
from vlmfix.engine.modules import input_device
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import find_question, question_start
from vlmfix.inference.conversation import Conversation, open_conversations, read_messages
from vlmfix.inference.rendering import model_inputs, render_conversation
from vlmfix.models.embedded import EMBEDDED

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")
PICTURES = [render(sample_scene(3, index)) for index in range(3)]
SYSTEM = {"role": "system", "content": "Answer in one word."}
TURNS: list[list[Any]] = [
    [{"type": "image", "image": PICTURES[0]}, {"type": "text", "text": "Is there a dog?"}],
    [{"type": "text", "text": "And in this one?"}, {"type": "image", "image": PICTURES[1]}],
    [{"type": "text", "text": "Which of them has more objects?"}],
    [{"type": "image", "image": PICTURES[2]}, {"type": "text", "text": "Describe the image."}],
]


@pytest.fixture(scope="module", params=EMBEDDED)
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return vlmfix.load(request.param)


@pytest.mark.parametrize("name", ["var", "vcd", "gift", "adaptinfer"])
def test_a_chat_of_four_turns_equals_the_same_prompt_at_once(name: str, loaded: tuple[Any, Any]) -> None:
    """Three pictures and a system message; the chat goes on from the cache of the turn before."""
    model, processor = loaded
    method = {"adaptinfer": {"prune_layers": (2, 4), "kept_tokens": (20, 10)}}.get(name, {})
    said: list[dict[str, Any]] = [SYSTEM]
    cache = DynamicCache()
    for content in TURNS:
        said.append({"role": "user", "content": content})
        at_once: list[Any] = []
        torch.manual_seed(0)  # of the noise
        text = vlmfix.generate(
            *loaded,
            messages=said,
            method=vlmfix.list_methods()[name](**method),
            max_new_tokens=4,
            on_answer=at_once.append,
        )
        inputs = model_inputs(open_conversations([read_messages(said)]), processor).to(input_device(model))
        with vlmfix.list_methods()[name](**method)(model, processor):
            torch.manual_seed(0)
            output = model.generate(**with_cache(model, inputs, cache), max_new_tokens=4, do_sample=False)
        new = tuple(output[0, inputs["input_ids"].shape[1] :].tolist())
        assert new == at_once[0].token_ids
        assert at_once[0].prompt_tokens == inputs["input_ids"].shape[1]
        assert cache.get_seq_length() == output.shape[1] - 1
        said.append({"role": "assistant", "content": text})
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) > 3


def test_the_question_is_the_last_turn_wherever_its_images_are(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    for count, question in enumerate(
        ("Is there a dog?", "And in this one?", "Which of them has more objects?"), 1
    ):
        said: list[dict[str, Any]] = [SYSTEM]
        for content in TURNS[:count]:
            said += [{"role": "user", "content": content}, {"role": "assistant", "content": "No"}]
        inputs = model_inputs(open_conversations([read_messages(said[:-1])]), processor)
        ids = inputs["input_ids"][0].tolist()
        found = find_question(ids, processor.image_token_id, processor)
        assert found.text.strip() == question
        spelt = processor.tokenizer.decode([ids[place] for place in found.tokens])
        assert spelt.replace(" ", "") == question.replace(" ", "")


def test_messages_are_the_short_way_for_a_single_question(loaded: tuple[Any, Any]) -> None:
    asked = [{"role": "user", "content": TURNS[0]}]
    short = vlmfix.generate(*loaded, PICTURES[0], "Is there a dog?", max_new_tokens=4)
    assert vlmfix.generate(*loaded, messages=asked, max_new_tokens=4) == short
    assert vlmfix.generate(*loaded, messages=[asked, asked], max_new_tokens=4) == [short, short]
    conversation = Conversation.of(PICTURES[0], "Is there a dog?")
    assert vlmfix.generate(*loaded, messages=conversation, max_new_tokens=4) == short


def test_a_baseline_of_the_prompt_adds_to_the_question(loaded: tuple[Any, Any]) -> None:
    conversation = read_messages([{"role": "user", "content": TURNS[1]}])
    changed = conversation.asking(lambda text: f"{text} Answer yes.")
    assert [part for part in changed.question.parts if isinstance(part, str)] == [
        "And in this one? Answer yes."
    ]
    only_a_picture = read_messages([{"role": "user", "content": TURNS[1][1:]}])
    assert only_a_picture.asking(lambda text: text).question.parts == only_a_picture.question.parts
    assert only_a_picture.asking(lambda text: f"{text} Answer yes.").question.parts[1] == "Answer yes."


def test_carve_refines_the_picture_of_the_question(loaded: tuple[Any, Any]) -> None:
    found: list[vlmfix.Refinement] = []
    said = [{"role": "user", "content": TURNS[0]}, {"role": "assistant", "content": "No"}]
    ask = [*said, {"role": "user", "content": TURNS[3]}]
    carve = vlmfix.CARVE(step_mode="first")
    vlmfix.generate(*loaded, messages=ask, method=carve, max_new_tokens=2, on_refinement=found.append)
    assert found[0].original is not None
    assert found[0].original.tobytes() == PICTURES[2].tobytes()
    [opened] = open_conversations([read_messages(ask)])
    assert opened.asked_about == [1]
    assert [len(each.parts) for each in opened.also_showing(PICTURES[1]).messages] == [2, 1, 3]


@pytest.mark.parametrize("name", TEMPLATES)
def test_order_and_system_message_in_templates_of_many_kinds(name: str) -> None:
    processor: Any = Processor(TEMPLATES[name])
    parts = [
        {"type": "text", "text": "See"},
        {"type": "image", "path": "a"},
        {"type": "text", "text": "here"},
    ]
    said = [SYSTEM, {"role": "user", "content": parts}]
    if name == "vicuna":
        with pytest.raises(ValueError, match="leaves out a text of the system"):
            render_conversation(read_messages(said), processor)
        said = said[1:]
    text = render_conversation(read_messages(said), processor)
    words = text[text.index("See") :]
    assert words.startswith("See<image>here")
    assert name == "vicuna" or "one word" in text[: text.index("See")]


def test_a_template_of_strings_and_none() -> None:
    parts = [
        {"type": "text", "text": "See "},
        {"type": "image", "path": "a"},
        {"type": "text", "text": "here"},
    ]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    said = read_messages([*turns, {"role": "user", "content": parts}])
    bare: Any = Processor(None)
    assert render_conversation(said, bare) == "USER: Hi ASSISTANT: Hello USER: See <image>\nhere ASSISTANT:"
    strings: Any = Processor(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    assert render_conversation(said, strings) == "[user]Hi[assistant]Hello[user]See <image>\nhere>"


def test_what_a_template_leaves_out_is_refused() -> None:
    no_system: Any = Processor(
        TEMPLATES["qwen"].replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    )
    with pytest.raises(ValueError, match=r"leaves out a text of the system \('Answer in one word.'\)"):
        render_conversation(read_messages([SYSTEM, {"role": "user", "content": "Hi"}]), no_system)
    user_only: Any = Processor(
        TEMPLATES["qwen"].replace("else '<image>'", "else '<image>' if m.role == 'user' else ''")
    )
    said = [{"role": "assistant", "content": TURNS[1]}, {"role": "user", "content": TURNS[0]}]
    with pytest.raises(ValueError, match="shows 1 of 2 pictures"):
        render_conversation(read_messages(said), user_only)
    with pytest.raises(ValueError, match="contains '<image>'"):
        render_conversation(read_messages([{"role": "user", "content": "an <image>"}]), user_only)


ITEM = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages is 'Hi'; it must be a list"),
        ([], "messages is "),
        (["Hi"], "message 1 is 'Hi'; it must be {\"role\""),
        ([{"role": "user"}], r"message 1 has the keys \['role'\]"),
        ([{**ITEM, "name": "me"}], r"message 1 has the keys \['content', 'name', 'role'\]"),
        ([{"role": "human", "content": "Hi"}], "message 1 is 'human'; use system, user, assistant"),
        ([ITEM, SYSTEM], "message 2 is of the system; only the first"),
        ([ITEM, {"role": "assistant", "content": "Hi"}], "message 2, the last one, is of 'assistant'"),
        ([{"role": "user", "content": 3}], "the content of message 1 is 3"),
        ([{"role": "user", "content": []}], "the content of message 1 is"),
        ([ITEM, {"role": "user", "content": ["Hi"]}], "item 1 of message 2 is 'Hi'; it must be {\"type"),
        ([{"role": "user", "content": [{"type": "image"}]}], "item 1 of message 1 is {'type': 'image'}"),
        ([{"role": "user", "content": [{"type": "audio", "path": "a"}]}], "item 1 of message 1 is"),
        ([{"role": "user", "content": [{"type": ["image"], "path": "a"}]}], "item 1 of message 1 is"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "the picture in item 1 of"),
        ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "list of its frames"),
        ([{"role": "system", "content": [{"type": "image", "path": "a"}]}, ITEM], "system, shows a picture"),
    ],
)  # fmt: skip
def test_malformed_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_messages(messages)


def test_arguments_that_do_not_go_together(loaded: tuple[Any, Any]) -> None:
    linked = [{"role": "user", "content": [{"type": "image", "url": "https://example.org/a.png"}]}]
    with pytest.raises(ValueError, match="messages hold their own images"):
        vlmfix.generate(*loaded, PICTURES[0], "Hi", messages=[ITEM])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="there is nothing to answer"):
        vlmfix.generate(*loaded)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="conversation 2: message 1 is"):
        vlmfix.generate(*loaded, messages=[[ITEM], ["Hi"]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="is a URL, and nothing is downloaded"):
        vlmfix.generate(*loaded, messages=linked)


def test_paths_are_relative_to_a_folder(tmp_path: Path) -> None:
    PICTURES[0].save(tmp_path / "a.png")
    (tmp_path / "frames").mkdir()
    for index in range(2):
        PICTURES[index].save(tmp_path / "frames" / f"{index}.png")
    content = [{"type": "image", "url": "a.png"}, Path("a.png"), {"type": "video", "path": "frames"}]
    read = read_messages([{"role": "user", "content": content}], tmp_path)
    assert read.pictures == [tmp_path / "a.png"] * 2
    assert read.videos == [(tmp_path / "frames" / "0.png", tmp_path / "frames" / "1.png")]
    [opened] = open_conversations([read])
    assert opened.pictures[0] is opened.pictures[1]
    assert read.identity == read_messages([{"role": "user", "content": content}], tmp_path).identity


def test_videos_go_to_the_video_processor_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = vlmfix.load("tiny-qwen2.5-vl")
    content = [{"type": "text", "text": "a"}, {"type": "video", "video": PICTURES[:2]}, *TURNS[0]]
    said = read_messages([{"role": "user", "content": content}])
    text = render_conversation(said, processor)
    assert "a<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>Is" in text
    with pytest.raises(ValueError, match="has no video processor"):
        model_inputs([said], processor)
    given: dict[str, Any] = {}

    class Takes:
        chat_template, tokenizer, video_processor = processor.chat_template, processor.tokenizer, object()
        image_token, video_token = processor.image_token, processor.video_token
        apply_chat_template = processor.apply_chat_template

        def __call__(self, **kwargs: Any) -> Any:
            given.update(kwargs)

    taking: Any = Takes()
    model_inputs([said], taking)
    assert given["videos"] == [PICTURES[:2]]
    assert given["images"] == PICTURES[:1]
    assert given["do_sample_frames"] is False


def test_the_text_that_asks_is_that_of_the_last_turn(loaded: tuple[Any, Any]) -> None:
    """Of the text after the last image; where the image comes last, what the template writes after it."""
    _, processor = loaded
    said = [{"role": "user", "content": TURNS[0]}, {"role": "assistant", "content": "No"}]
    asked = [*said, {"role": "user", "content": TURNS[2]}]
    for content, first in (
        (TURNS[2], "Which of them"),  # its picture stands in an earlier turn
        (TURNS[3], "Describe"),
        (TURNS[1], ""),
    ):
        inputs = model_inputs(
            open_conversations([read_messages([*said, {"role": "user", "content": content}])]), processor
        )
        ids = inputs["input_ids"][0].tolist()
        start = question_start(ids, processor.image_token_id, processor)
        text = processor.tokenizer.decode(ids[start:])
        assert processor.image_token not in text
        assert first in text[:40]
        assert "dog" not in text
    ids = model_inputs(open_conversations([read_messages(asked)]), processor)["input_ids"][0].tolist()
    rows: list[int] = []

    class Watched(vlmfix.AdaptInfer):
        def observe(self, context: Any, layer: int, weights: torch.Tensor) -> None:
            super().observe(context, layer, weights)
            rows[:] = context.state[self, layer].index.tolist()

    method = Watched(prune_layers=(1,), kept_tokens=(10,))
    vlmfix.generate(*loaded, messages=asked, method=method, max_new_tokens=1)
    assert rows == list(range(question_start(ids, processor.image_token_id, processor), len(ids)))
    with method(loaded[0]):  # without a processor, all text after the image
        inputs = model_inputs(open_conversations([read_messages(asked)]), processor)
        loaded[0].generate(**inputs, max_new_tokens=1, do_sample=False)
    assert len(rows) == len(ids) - 1 - max(
        i for i, each in enumerate(ids) if each == processor.image_token_id
    )
    single = model_inputs(open_conversations([read_messages(said[:1])]), processor)["input_ids"][0].tolist()
    last = len(single) - 1 - single[::-1].index(processor.image_token_id)
    assert question_start(single, processor.image_token_id, processor) == last + 1
