"""HumbleBench: letters in answers, by both rules."""

from __future__ import annotations

import pytest
from vlmfix.evals.humblebench.letters import PARSERS, letter_first, letter_set

OPTIONS = {"A": "a fork", "B": "a red car", "C": "tree", "D": "", "E": "None of the above"}


@pytest.mark.parametrize(
    ("text", "by_set", "first"),
    [
        ("E", "E", "E"),
        ("(E)", "E", "E"),
        ("**C**", "C", "C"),
        ("A or B", None, "A"),
        ("B. a red car", None, "B"),
        ("None of the above", None, "E"),
        ("", None, None),
        ("A cat", "A", None),
        ("The answer is B", "B", "B"),
        ("The answer is B, a dog", None, "B"),
    ],
)
def test_vectors_of_the_specification(text: str, by_set: str | None, first: str | None) -> None:
    assert letter_set(text, OPTIONS) == by_set
    assert letter_first(text, OPTIONS) == first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b", "B"),
        (" e\n", "E"),
        ("b.", None),  # a small letter counts only alone
        ("Answer: D", "D"),
        ("**Answer:** (B) the red one", "B"),
        ('"C"', "C"),
        ("Option A", "A"),
        ("the answer is: E.", "E"),
        ("A", "A"),
        ("A.", "A"),
        ("A: fork", "A"),
        ("A is right", "A"),
        ("A red cat", None),
        ("A red car", "B"),  # by its text
        ("I see a TREE there", "C"),
        ("a fork beside a tree", None),  # the texts of two
        ("Because", None),
        ("Dog", None),
        ("E_1", None),
        ("F", None),
        ("answering B", None),
        ("It is B", None),
    ],
)
def test_the_first_letter(text: str, expected: str | None) -> None:
    assert letter_first(text, OPTIONS) == expected


def test_the_text_of_an_option_makes_a_difference() -> None:
    assert letter_first("A cat", OPTIONS | {"D": "cat"}) == "D"


@pytest.mark.parametrize("text", ["a_b", "b b B", "É e", "c2"])
def test_words_of_the_official_rule(text: str) -> None:
    assert letter_set(text, {}) == {"b b B": "B", "É e": "E"}.get(text)


def test_the_default_comes_first() -> None:
    assert list(PARSERS) == ["letter_first", "letter_set"]
