"""AMBER, generative part: what becomes of each noun, and the figures of the official script."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from vlmfix.evals.amber_generative.scorer import (
    Counts,
    OfficialScore,
    Reading,
    Variant,
    Words,
    official_score,
    read_nouns,
)

WORDS = Words(
    {"person": ("man", "woman"), "tree": ("forest",), "dog": ("puppy",), "cat": (), "bench": ("seat",)},
    {"picture"},
)
ALIKE = {
    ("boy", "man"): 0.9,
    ("wood", "forest"): 0.81,
    ("chair", "bench"): 0.8,
    ("puppy", "cat"): 0.85,
    ("dog", "cat"): 0.82,
}


def similarity(one: str, other: str) -> float:
    return 1.0 if one == other else ALIKE.get((one, other), 0.0)


def read(
    *nouns: str,
    truth: Sequence[str] = ("person", "tree", "bench"),
    hallu: Sequence[str] = ("dog",),
    variant: Variant = "corrected",
) -> Reading:
    return read_nouns(nouns, truth, hallu, WORDS, similarity, variant)


@pytest.mark.parametrize("variant", ["corrected", "official"])
@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("picture", Reading([], [], [])),  # safe
        ("tree", Reading([], ["tree"], [])),
        ("woman", Reading([], ["person"], [])),  # an associate
        ("dog", Reading(["dog"], [], ["dog"])),
        ("puppy", Reading(["puppy"], [], ["dog"])),
        ("boy", Reading([], ["person"], [])),  # similar to an associate
        ("wood", Reading([], ["tree"], [])),
        ("chair", Reading(["chair"], [], [])),  # 0.8 is not above 0.8
        ("car", Reading(["car"], [], [])),
    ],
)
def test_one_noun(noun: str, expected: Reading, variant: Variant) -> None:
    assert read(noun, variant=variant) == expected


def test_repeats_count_and_words_are_marked_once() -> None:
    assert read("man", "car", "woman", "car", "dog", "puppy") == Reading(
        ["car", "car", "dog", "puppy"], ["person"], ["dog"]
    )


def test_a_noun_known_to_be_absent_may_pass_in_the_official_variant() -> None:
    truth, hallu = ("cat",), ("bench", "dog")
    assert read("puppy", truth=truth, hallu=hallu) == Reading(["puppy"], [], ["dog"])
    assert read("puppy", truth=truth, hallu=hallu, variant="official") == Reading([], ["cat"], ["dog"])


@pytest.mark.parametrize("variant", ["corrected", "official"])
def test_similar_to_what_is_absent(variant: Variant) -> None:
    assert read("boy", truth=("tree",), hallu=("person",), variant=variant) == Reading(
        ["boy"], [], ["person"]
    )
    # both are similar: expected there, and safe
    both = read("puppy", truth=("cat",), hallu=("cat",), variant=variant)
    assert both == Reading([], ["cat"], ["cat"])


def test_the_official_variant_looks_for_similar_words_after_an_exact_one() -> None:
    found = read("dog", truth=(), hallu=("cat", "dog"), variant="official")
    assert found == Reading(["dog"], [], ["cat", "dog"])
    assert read("dog", truth=(), hallu=("cat", "dog")) == Reading(["dog"], [], ["dog"])


def test_associates_come_before_the_words_themselves() -> None:
    words = dataclasses.replace(WORDS, associates={"person": ("man",), "man": ()})
    found = read_nouns(["man"], ["man", "person"], [], words, similarity, "corrected")
    assert found.covered == ["person"]


def test_words_without_an_entry_have_no_associates() -> None:
    assert read("unicorn", truth=("unicorn",)) == Reading([], ["unicorn"], [])


def test_a_word_that_is_listed_twice_is_covered_once() -> None:
    assert read("cat", truth=("cat", "cat"), hallu=()).covered == ["cat"]


def test_no_nouns_and_no_words() -> None:
    assert read() == Reading([], [], [])
    assert read("cat", truth=(), hallu=()) == Reading(["cat"], [], [])


def test_the_vocabulary_is_heads_and_associates() -> None:
    assert WORDS.vocabulary == {
        *("person", "man", "woman", "tree", "forest", "dog", "puppy", "cat", "bench", "seat")
    }


def test_official_figures() -> None:
    toy = Counts(nouns=7, hallucinated=2, truth=5, covered=3, hallu=4, expected=1, descriptions=2, clean=1)
    assert official_score(toy) == OfficialScore(chair=28.6, cover=60.0, hal=50.0, cog=25.0)
    assert official_score(Counts(0, 0, 0, 0, 0, 0, 1, 1)) == OfficialScore(0, 0, 0.1, 0)
