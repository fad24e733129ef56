"""AMBER, generative part: nouns and similarity by lookup and, where it is installed, by spaCy."""

from __future__ import annotations

import importlib.util

import pytest
from vlmfix.evals.amber_generative import language
from vlmfix.evals.amber_generative.language import MODEL, Lookup, Spacy


def test_lookup() -> None:
    lookup = Lookup(
        {"mouse": "mouse", "mice": "mouse", "traffic light": "traffic light", "light": "light"}, "a list"
    )
    text = "Two mice, a Mouse by a traffic light and a light; no mousetrap."
    assert lookup.nouns(text) == ["mouse", "mouse", "traffic light", "light"]
    assert (lookup.similarity("mouse", "mouse"), lookup.similarity("mouse", "light")) == (1, 0)
    assert lookup.name == "plain lookup in a list, no tagger and no vectors"


@pytest.mark.parametrize("lacking", ["spacy", MODEL])
def test_a_missing_package_is_named(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else object())
    with pytest.raises(ImportError, match=rf"need spaCy with {MODEL}; pip install 'vlmfix\[amber\]', then"):
        Spacy()


@pytest.fixture(scope="module")
def spacy() -> Spacy:
    pytest.importorskip("spacy", reason="spaCy is not installed (extra amber)")
    pytest.importorskip(MODEL, reason=f"the spaCy model {MODEL} is not installed")
    return Spacy()


def test_nouns_of_spacy(spacy: Spacy) -> None:
    assert spacy.nouns("Two dogs run past a red car, and three men sit on benches.") == [
        "dog",
        "car",
        "man",
        "bench",
    ]
    assert spacy.nouns("Dogs are running.") == ["Dog"]  # AMBER keeps the case
    assert spacy.nouns("") == []
    assert MODEL in spacy.name


def test_similarity_of_spacy(spacy: Spacy) -> None:
    assert spacy.similarity("cat", "cat") == pytest.approx(1)
    assert spacy.similarity("cat", "dog") == pytest.approx(spacy.similarity("dog", "cat"))
    assert spacy.similarity("cat", "dog") > spacy.similarity("cat", "bridge")
    assert spacy.similarity("cat", "zzzqqqxxx") == 0


def test_the_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[None] = []
    monkeypatch.setattr(language, "Spacy", lambda: loads.append(None) or object())
    language.spacy_language.cache_clear()
    try:
        assert language.spacy_language() is language.spacy_language()
        assert len(loads) == 1
    finally:
        language.spacy_language.cache_clear()
