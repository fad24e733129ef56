"""The user's question is found among the tokens of a prompt, in the forms that prompts have."""

from __future__ import annotations

from typing import Any

import pytest

import vlmfix
from vlmfix.engine import tokens
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.inference.chat import find_question, prepare, text_and_spans
from vlmfix.models.embedded import EMBEDDED

QUESTION = "Is there a red dog, or a cup?"


@pytest.fixture(scope="module", params=EMBEDDED)
def loaded(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return vlmfix.load(request.param)


def found(loaded: tuple[Any, Any], ids: list[int]) -> tuple[str, str]:
    """The question as text, and as the tokens found."""
    model, processor = loaded
    question = find_question(ids, tokens.image_token(model.config), processor)
    return question.text.strip(), processor.tokenizer.decode([ids[place] for place in question.tokens])


def test_question_in_a_batch_of_images(loaded: tuple[Any, Any]) -> None:
    image = render(demo_scene())
    inputs = prepare(
        [[image], [image, image], []], [QUESTION, "What color is the cup?", "Hi there"], loaded[1]
    )
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
    texts = [found(loaded, ids[mask].tolist()) for ids, mask in rows]
    assert texts[0] == (QUESTION, QUESTION)
    assert texts[1][0] == "What color is the cup?"
    assert texts[2][0] == "Hi there"


def test_tokens_of_words(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = prepare([[render(demo_scene())]], [QUESTION], processor)
    ids = inputs["input_ids"][0].tolist()
    question = find_question(ids, tokens.image_token(model.config), processor)
    start = question.text.index("red")
    places = question.tokens_of([(start, start + 3)])
    assert processor.tokenizer.decode([ids[place] for place in places]).strip() == "red"
    assert question.tokens_of([]) == []


def test_last_of_several_turns_and_image_behind_the_question(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    if processor.chat_template or processor.tokenizer.chat_template:
        turns = [
            {"role": "user", "content": [{"type": "text", "text": "Is it a cat?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "No, a user of cats."}]},
            {"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image"}]},
        ]
        template = processor.chat_template or processor.tokenizer.chat_template
        text = processor.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    else:
        text = f"USER: Is it a cat? ASSISTANT: No. USER: {QUESTION} <image> ASSISTANT:"
    ids = processor(images=[render(demo_scene())], text=[text])["input_ids"][0]
    text, tokens = found(loaded, list(ids))
    assert text.startswith(QUESTION)
    assert "cat" not in text
    assert tokens.strip().rstrip("<>") == QUESTION


def test_prompt_in_another_form(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    text = f"{processor.image_token}{QUESTION}"
    ids = processor(images=[render(demo_scene())], text=[text])["input_ids"][0]
    assert found(loaded, list(ids)) == (QUESTION, QUESTION)


def test_spans_of_a_long_text_are_those_of_its_beginnings(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1].tokenizer
    ids = tokenizer("Is there a \u00fcber-dog \U0001f415\u2009\u72ac, or  a cup? " * 12)["input_ids"]
    text, spans = text_and_spans(ids, loaded[1])
    ends = [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]
    assert len(ids) > 300
    assert text == tokenizer.decode(ids)
    assert [stop for _, stop in spans] == [max(ends[: place + 2]) for place in range(len(ids))]
