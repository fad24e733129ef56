"""Explanations as a whole: what they hold, where two answers part, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

import vlmfix
from vlmfix.explanation.arrays import MAPS
from vlmfix.explanation.figures import KINDS
from vlmfix.explanation.formulas import IMAGE, SINKS
from vlmfix.explanation.objects import Mention, PictureObjects

pytestmark = pytest.mark.slow


def test_shares_sum_to_one_and_gains_are_cuts(explained: vlmfix.Explanation) -> None:
    plain = explained.plain
    assert plain.shares is not None
    np.testing.assert_allclose(plain.shares.sum(axis=1), 1, atol=1e-5)
    assert plain.image_gain is not None
    np.testing.assert_array_equal(plain.image_gain, -explained.cuts["image_to_all_text"])
    found = {
        plain.words[place].text: plain.of_word(plain.image_gain, place) for place in range(len(plain.words))
    }
    # Of the specification, measured by others.
    assert {name: round(found[name], 2) for name in ("couch", "cat", "remote", "tv")} == {
        "couch": 5.29,
        "cat": 5.03,
        "remote": 2.71,
        "tv": 1.59,
    }
    couch = plain.words[explained.find("couch")].tokens[0]
    assert plain.shares[couch, [IMAGE, SINKS]].sum() == pytest.approx(0.398, abs=5e-4)


def test_the_invented_object_is_explained(explained: vlmfix.Explanation) -> None:
    named = {(each.category, each.is_present) for each in explained.plain.named or ()}
    assert ("tv", False) in named
    assert {("potted plant", True), ("couch", True), ("cat", True), ("remote", True)} <= named
    assert explained.plain.words[explained.word].text == "tv"
    judged = {explained.plain.words[word].text for word in explained.judged}
    assert judged == {"potted", "couch", "cat", "remote"}


def test_where_the_answers_part(explained: vlmfix.Explanation) -> None:
    assert explained.method is not None
    assert explained.compared is not None
    parting = explained.compared.parting
    assert parting is not None
    one, other = explained.plain.token_ids, explained.method.token_ids
    assert one[: parting.place] == other[: parting.place]
    assert (one[parting.place], other[parting.place]) == parting.choice[:2]
    assert parting.choice.plain_margin > 0
    assert parting.choice.method_margin > 0
    assert parting.plain[0] == pytest.approx(np.exp(explained.plain.log_p[parting.place]), abs=1e-4)
    assert explained.compared.divergence[parting.place] == pytest.approx(parting.choice.divergence, abs=1e-5)
    for place, word in enumerate(explained.plain.words):
        assert explained.difference(place).sum() == pytest.approx(0, abs=1e-5), word


def test_a_neutral_method_changes_nothing(loaded: tuple[Any, Any], scene: Image.Image) -> None:
    method = vlmfix.VAR(moved_fraction=0)
    found = vlmfix.explain(*loaded, scene, method=method, max_new_tokens=12)
    assert found.compared is not None
    assert found.compared.parting is None
    assert np.abs(found.compared.divergence).max() < 1e-6
    np.testing.assert_allclose(found.compared.plain_under_method, found.plain.log_p, atol=1e-4)
    assert found.method is not None
    assert found.method.text == found.plain.text


def test_maps_lie_on_the_picture(explained: vlmfix.Explanation) -> None:
    assert explained.maps == MAPS
    for name in MAPS:
        saliency = explained.saliency(name, "cat")
        assert saliency.shape == explained.picture.size[::-1]
        assert np.isfinite(saliency).all()
    sinks = explained.sinks.is_sink[[explained.layers.index(layer) for layer in explained.band]].all(axis=0)
    assert sinks.any()
    assert (explained.values("band", "cat")[sinks] == 0).all()
    [heads] = explained.heads("cat")
    assert explained.plain.attention is not None
    [token] = explained.plain.words[explained.find("cat")].tokens
    np.testing.assert_allclose(heads.mean(axis=1), explained.plain.attention[:, token], atol=1e-6)


def test_a_given_answer_is_explained(loaded: tuple[Any, Any], scene: Image.Image) -> None:
    written = vlmfix.explain(*loaded, scene, max_new_tokens=12)
    given = vlmfix.explain(*loaded, scene, answer=written.plain.text, word="two")
    count = len(given.plain.token_ids)
    assert given.plain.token_ids == written.plain.token_ids[:count]
    np.testing.assert_allclose(given.plain.log_p, written.plain.log_p[:count], atol=1e-5)
    assert given.plain.words[given.word].text == "two"


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"faithfulness"}))
def test_figures(explained: vlmfix.Explanation, kind: str, tmp_path: Path) -> None:
    figure = explained.plot(kind, word="couch")
    assert isinstance(figure, matplotlib.figure.Figure)
    figure.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").stat().st_size > 1000
    with pytest.raises(ValueError, match="use maps, flow, heads"):
        explained.plot("pie")


def test_what_was_not_made_is_said(loaded: tuple[Any, Any], scene: Image.Image) -> None:
    found = vlmfix.explain(*loaded, scene, max_new_tokens=8)
    with pytest.raises(ValueError, match="--faithfulness"):
        found.plot("faithfulness")
    with pytest.raises(ValueError, match="explain with a method"):
        found.difference("image")
    with pytest.raises(ValueError, match="its content words are image, shows"):
        found.values("band", "zebra")
    with pytest.raises(ValueError, match=r"there is no map 'gradient'; use band, rollout, contrast, encoder"):
        found.values("gradient", "image")


def test_numbers_as_json(explained: vlmfix.Explanation, tmp_path: Path) -> None:
    content = json.loads(explained.save(tmp_path / "numbers.json").read_text())
    assert content == json.loads(explained.json())
    assert content["greedy"]["text"] == explained.plain.text
    assert content["compared"]["parting"]["place"] == 17
    longest = max(re.findall(r"\d\.\d+", explained.json()), key=len)
    assert len(longest.replace(".", "").lstrip("0")) <= 6


@pytest.mark.parametrize("method", ["carve", "opera", "baseline.beam"])
def test_methods_without_one_pass_are_compared_as_texts(
    loaded: tuple[Any, Any], scene: Image.Image, method: str
) -> None:
    found = vlmfix.explain(*loaded, scene, "Is there a cat in the image?", method=method, max_new_tokens=4)
    assert found.method is not None
    assert found.method.text
    assert found.compared is None
    assert method in found.left_out["comparison"]
    assert found.left_out["comparison"] in found.html()


def test_bad_input(loaded: tuple[Any, Any], scene: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass a picture or its path as image"):
        vlmfix.explain(*loaded, None)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no image file"):
        vlmfix.explain(*loaded, tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"the answer is '\.\.\.', which has no words"):
        vlmfix.explain(*loaded, scene, answer="...")
    with pytest.raises(ValueError, match="no word 'zebra'"):
        vlmfix.explain(*loaded, scene, answer="A cat.", word="zebra")
    with pytest.raises(ValueError, match="maps has 'gradient'"):
        vlmfix.explain(*loaded, scene, maps=("gradient",))
    with (
        vlmfix.VAR()(loaded[0]),
        pytest.raises(vlmfix.UnsupportedError, match="VAR is attached to the model; leave its block"),
    ):
        vlmfix.explain(*loaded, scene)
    with pytest.raises(ValueError, match="a recipe may decode with beams"):
        vlmfix.explain(*loaded, scene, method="auto")
    wrong = PictureObjects(lambda text: [Mention("cat", 2, 5, True)], {"cat": np.ones((3, 3), dtype=bool)})
    with pytest.raises(ValueError, match="the mask of cat is 3 x 3 pixels, the picture 112 x 112"):
        vlmfix.explain(*loaded, scene, answer="A cat.", objects=wrong)


def test_an_encoder_whose_attention_is_not_read(
    loaded: tuple[Any, Any], scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out with the reason, and refused where it is asked for."""
    monkeypatch.setattr("vlmfix.engine.vision_attention._is_llava_with_clip", lambda core: False)
    found = vlmfix.explain(*loaded, scene, max_new_tokens=8)
    assert found.maps == ("band", "rollout", "contrast")
    assert "the attention of the vision encoder of llava is not read" in found.left_out["encoder"]
    assert found.left_out["encoder"] in found.html()
    with pytest.raises(vlmfix.UnsupportedError, match="there is no map of the vision encoder"):
        vlmfix.explain(*loaded, scene, maps=("encoder",))


def test_an_explanation_without_its_model(explained: vlmfix.Explanation) -> None:
    alone = dataclasses.replace(explained, _heads_at=None, _heads={})
    assert not alone.has_heads
    with pytest.raises(ValueError, match="the model is not at hand"):
        alone.heads("cat")
    assert "couch" in alone.html()


def test_a_given_beginning_does_not_part_from_the_whole(loaded: tuple[Any, Any], scene: Image.Image) -> None:
    found = vlmfix.explain(*loaded, scene, method="var", answer="The image shows two", max_new_tokens=12)
    assert found.compared is not None
    assert found.compared.parting is None
    assert found.method is not None
    assert found.method.text.startswith("The image shows two potted")
    assert "var begins with the same words" in found.html()
    assert "equal as far as the shorter one goes" in found.html()
