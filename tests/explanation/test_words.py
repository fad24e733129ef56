"""Words of answers, and answers that are given as texts."""

from __future__ import annotations

from typing import Any

import pytest

import vlmfix
from vlmfix.explanation.words import END, Word, answer_tokens, find_word, read_words
from vlmfix.inference.chat import render
from vlmfix.models.embedded import EMBEDDED


@pytest.fixture(scope="module", params=EMBEDDED)
def processor(request: pytest.FixtureRequest) -> Any:
    return vlmfix.load(request.param)[1]


def test_every_token_belongs_to_one_word(processor: Any) -> None:
    ids = processor.tokenizer(" A cat, and two dogs.", add_special_tokens=False)["input_ids"]
    ids = [*ids, processor.tokenizer.eos_token_id]
    text, words = read_words(ids, processor)
    assert [token for word in words for token in word.tokens] == list(range(len(ids)))
    assert "".join(word.text for word in words) == text.replace(" ", "") + END
    assert [word.text for word in words if word.is_content] == ["cat", "two", "dogs"]
    assert all(text[word.start : word.stop] == word.text for word in words[:-1])


def test_given_answers_are_what_the_model_would_have_written(processor: Any) -> None:
    prompt = render("Describe the image.", 1, processor)
    for text in ("The image shows a red car.", "Yes"):
        ids = answer_tokens(text, prompt, processor)
        whole = processor.tokenizer(prompt + ("" if prompt[-1].isspace() else " ") + text)["input_ids"]
        assert tuple(whole[-len(ids) :]) == ids
        assert read_words(ids, processor)[0].strip() == text


@pytest.mark.parametrize("text", ["", "  ", "...", "?!"])
def test_answers_without_words_are_refused(processor: Any, text: str) -> None:
    with pytest.raises(ValueError, match="has no words; give an answer with a word"):
        answer_tokens(text, "USER: ASSISTANT:", processor)


def test_words_are_found_by_text_mention_and_token() -> None:
    words = [
        Word("a", 0, 1, (0,), False),
        Word("cat", 2, 5, (1, 2), True),
        Word("a", 6, 7, (3,), False),
        Word("Cat", 8, 11, (4,), True),
    ]
    assert [find_word(words, asked) for asked in ("cat", "cat#1", "CAT#2", "a#2", "2", "4")] == [
        1,
        1,
        3,
        2,
        1,
        3,
    ]
    for asked in ("dog", "cat#3", "cat#0", "cat#x"):
        with pytest.raises(ValueError, match="its content words are cat, Cat"):
            find_word(words, asked)
    with pytest.raises(ValueError, match="has no token 5; it has 5, 0 to 4"):
        find_word(words, "5")
