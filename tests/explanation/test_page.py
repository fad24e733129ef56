"""The page: complete, harmless whatever models and users write, and the same for the same explanation."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmfix
from vlmfix.explanation.export import packed
from vlmfix.explanation.objects import Mention, PictureObjects

HEAD = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(explained: vlmfix.Explanation) -> str:
    return explained.html()


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_same_explanation_gives_the_same_bytes(
    explained: vlmfix.Explanation, page: str, loaded: tuple[Any, Any], scene: Image.Image
) -> None:
    assert explained.html() == page
    one, other = (vlmfix.explain(*loaded, scene, max_new_tokens=8, name="tiny") for _ in range(2))
    assert one.html() == other.html()
    assert one.json() == other.json()


def test_no_request_leaves_it(page: str) -> None:
    assert HEAD in page
    assert "http" not in page.replace("http-equiv", "").lower()
    assert set(re.findall(r'(?:src|href)="([a-z]*:|#)', page)) <= {"data:", "#"}


def test_both_answers_stand_in_it_word_by_word(explained: vlmfix.Explanation, page: str) -> None:
    strips = re.findall(r'<p class="strip".*?</p>', page, re.DOTALL)
    assert explained.method is not None
    for strip, told in zip(strips, (explained.plain, explained.method), strict=True):
        written = re.sub(r"<sup.*?</sup>|<[^>]+>", "", strip).split()
        assert written == [word.text for word in told.words]
    assert strips[0].count("parting") == strips[1].count("parting") == 1
    invented = re.findall(r'class="word[^"]*invented[^"]*"[^>]*>(\w+)', page)
    assert invented.count("tv") == 1


def test_summary(page: str) -> None:
    summary = re.search(r'<ul class="summary">(.*?)</ul>', page, re.DOTALL)
    assert summary is not None
    text = re.sub(r"<[^>]+>", "", summary[1])
    assert "matters most for “couch”: with it the word is 197 times as likely" in text
    assert "Not in the picture, but in the answer: tv." in text
    assert "var changes its mind at “and”, where plain decoding writes “.”" in text


def test_maps_come_as_bytes(explained: vlmfix.Explanation, page: str) -> None:
    data = data_of(page)
    rows, columns = data["cells"]
    for name, maps in data["answers"][0]["maps"].items():
        assert len(maps) == (1 if name == "encoder" else len(explained.plain.words))
        assert {len(base64.b64decode(each["bytes"])) for each in maps} == {rows * columns}
    place = explained.find("cat")
    own = data["answers"][0]["maps"]["band"][place]
    codes = np.frombuffer(base64.b64decode(own["bytes"]), dtype=np.uint8)
    expected = explained.cells.of_tokens(explained.values("band", place)).ravel()
    np.testing.assert_allclose(codes / 255 * own["bound"], expected, atol=own["bound"] / 500)
    assert str(place) in data["layered"]
    assert len(data["heads"][str(place)]) == len(explained.layers)


def test_signed_maps_have_zero_in_the_middle() -> None:
    found = packed(np.array([[-2.0, 0, 1]]))
    assert list(base64.b64decode(found["bytes"])) == [0, 128, 191]
    assert (found["bound"], found["signed"]) == (2, True)
    assert packed(np.zeros((2, 2)))["bound"] == 0


def test_nothing_that_is_written_is_markup(loaded: tuple[Any, Any], scene: Image.Image) -> None:
    bad = "</script><script>alert(1)</script> cat"
    objects = PictureObjects(
        lambda text: [Mention("<b>cat</b>", text.index("cat"), text.index("cat") + 3, False)]
    )
    found = vlmfix.explain(
        *loaded, scene, "<img src=x onerror=alert(2)>?", answer="A cat.", objects=objects, name="<i>x</i>"
    )
    words = [word._replace(text=bad) if word.text == "cat" else word for word in found.plain.words]
    page = dataclasses.replace(found, plain=dataclasses.replace(found.plain, words=words)).html()
    for text in ("<script>alert", "<img src=x", "<b>cat", "<i>x"):
        assert text not in page
    assert data_of(page)["answers"][0]["words"][1]["text"] == bad


def test_a_notebook_shows_it_in_a_frame(explained: vlmfix.Explanation, page: str) -> None:
    shown = explained._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert 'sandbox="allow-scripts"' in shown
    assert shown.count('"') == 8


def test_blocks_without_data_say_why(loaded: tuple[Any, Any], scene: Image.Image) -> None:
    page = vlmfix.explain(*loaded, scene, max_new_tokens=8).html()
    assert "Against masks: not here, because nobody said where the objects are" in page
    assert "Deletion and insertion: not here, because nobody asked for them" in page
    assert "Plain against" not in page


def test_a_long_answer_keeps_the_maps_of_content_words(
    explained: vlmfix.Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmfix.explanation.page_data._MAP_CELLS", 64 * 6)
    data = data_of(explained.html())
    for name in ("band", "rollout", "contrast", "difference"):
        kept = [bool(each) for each in data["answers"][0]["maps"][name]]
        assert sum(kept) == 7  # six, and the word that is explained
        words = [word for word, there in zip(explained.plain.words, kept, strict=True) if there]
        assert all(word.is_content for word in words)
    assert data["answers"][0]["maps"]["band"][explained.word]
