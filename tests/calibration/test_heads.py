"""Hallucination heads: planted ones are found, and none where there is nothing to find."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import vlmfix
from vlmfix.calibration import object_tokens
from vlmfix.calibration.calibrate import calibrate
from vlmfix.calibration.heads import AnnotatedImage, ObjectWord
from vlmfix.cli.app import app
from vlmfix.evaluation.datasets import render, sample_scene, write_coco
from vlmfix.models.profiles import Profile, find_profile


def judge(caption: str) -> list[ObjectWord]:
    """Every word with more than four letters is an object; longer ones than six are not there."""
    starts = [0, *(place + 1 for place, letter in enumerate(caption) if letter == " ")]
    words = zip(starts, caption.split(" "), strict=True)
    return [ObjectWord(start, len(word) > 6) for start, word in words if len(word) > 4]


class Planted:
    """Some heads of layer 5 have an effect on what is not there, head 0 of layer 4 on all objects; the
    estimate takes head 1 of layer 2 for the best one."""

    def __init__(self, processor: Any, on_wrong: float, planted: Any, *read: Any) -> None:
        self.tokenizer, self.on_wrong, self.planted = processor.tokenizer, on_wrong, planted
        self.token_ids: tuple[int, ...] = read[-1]

    def wrong(self, places: list[int]) -> Tensor:
        caption = self.tokenizer.decode(self.token_ids, skip_special_tokens=True)
        words = judge(caption)
        for word, place in zip(words, places, strict=True):
            before = self.tokenizer.decode(self.token_ids[:place])
            token = self.tokenizer.decode(self.token_ids[place])
            assert caption.startswith(before)
            assert caption[word.start :].startswith(token.strip())
            assert len(before) <= word.start < len(before) + len(token)
        return torch.tensor([word.hallucinated for word in words])

    def effects(self, places: list[int]) -> Tensor:
        found = torch.zeros(len(places), 8, 6)
        found[:, 4, 0] = 0.9
        found[:, 5, self.planted] = torch.where(self.wrong(places), self.on_wrong, 0.01)[:, None]
        return found

    def first_order(self, places: list[int]) -> tuple[Tensor, Tensor]:
        found = self.effects(places)
        found[:, 2, 1] += self.wrong(places) * 0.7
        return found, torch.linspace(0.9, 1, len(places))

    def exact(self, places: list[int], silenced: Tensor) -> Tensor:
        return self.effects(places).flatten(1) @ silenced.flatten(1).T.float()


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_planted_heads_are_found_at_the_first_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = vlmfix.load(name)
    captions: list[str] = []

    def noted(caption: str) -> list[ObjectWord]:
        captions.append(caption)
        return judge(caption)

    monkeypatch.setattr(object_tokens, "CaptionRows", functools.partial(Planted, processor, 0.3, [3]))
    pictures = [render(sample_scene(7, index)) for index in range(4)]
    counted: list[int] = []
    images = [AnnotatedImage(picture, noted) for picture in pictures]
    with pytest.warns(UserWarning, match=r"name \d+ hallucinated objects; rankings are firm from about 50"):
        found = calibrate("adhh", model, processor, images, progress=counted.append)
    answers = vlmfix.generate(model, processor, pictures, "Describe the image.", do_sample=False)
    assert [caption.strip() for caption in captions] == answers
    assert sum(counted) == 3 * 4
    assert found.values == {"adhh_heads": [[5, 3]]}
    words = [word for caption in captions for word in judge(caption)]
    findings = found.findings
    assert findings["hallucinated object tokens"] == sum(word.hallucinated for word in words)
    assert findings["correct object tokens"] == sum(not word.hallucinated for word in words)
    assert findings["gain on held-out pictures"] == pytest.approx(0.29)
    assert findings["p against random heads"] == pytest.approx(1 / 21, abs=1e-3)
    assert findings["best heads common to estimate and silencing"] == "0 of 1"
    assert findings["best heads common to both halves"] == "0 of 1"
    assert findings["head 5:3"].startswith("0.3000 on hallucinated objects, 0.0100 on correct ones, t ")
    assert findings["head 5:3"].endswith("among the best 1 in 100% of resamples")


def test_heads_without_a_difference_give_no_list(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = loaded
    monkeypatch.setattr(object_tokens, "CaptionRows", functools.partial(Planted, processor, 0.0, [3]))
    images = [AnnotatedImage(render(sample_scene(7, index)), judge) for index in range(4)]
    with (
        pytest.warns(UserWarning, match="hallucinated objects"),
        pytest.raises(
            ValueError, match=r"no list of heads .* not found on \(gain by number of heads 1: 0.000 \+- 0.000"
        ),
    ):
        calibrate("adhh", *loaded, images)


def test_heads_no_better_than_their_neighbours_are_worth_a_warning(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = loaded
    monkeypatch.setattr(
        object_tokens, "CaptionRows", functools.partial(Planted, processor, 0.3, [0, 1, 2, 3, 4, 5])
    )
    images = [AnnotatedImage(render(sample_scene(7, index)), judge) for index in range(4)]
    with (
        pytest.warns(UserWarning, match="hallucinated objects"),
        pytest.warns(UserWarning, match=r"random heads of the same layers do as much as the list \(p = 1.00"),
    ):
        found = calibrate("adhh", *loaded, images)
    assert found.values == {"adhh_heads": [[5, 0], [5, 1]]}


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_coco(tmp_path / "scenes", count=7, seed=1)
    profile = tmp_path / "profiles" / "mine.yaml"
    arguments = ["calibrate", "--method", "adhh", "--images", str(folder), "--output", str(profile)]
    result = CliRunner().invoke(app, [*arguments, "--limit", "6"])
    assert result.exit_code == 0, result.stderr
    assert "6 pictures; 100 or more give a firmer result" in result.stderr
    assert Profile.read(profile).get("adhh_heads") == [[3, 1]]
    assert "head 3:1" in result.stdout
    monkeypatch.setenv("VLMFIX_PROFILES", str(profile.parent))
    model, _ = vlmfix.load()
    found = vlmfix.ADHH().resolve(model.config, find_profile(model))
    assert found.heads == ((3, 1),)


def test_captions_without_mistakes_or_without_judge(loaded: tuple[Any, Any]) -> None:
    picture = Image.new("RGB", (112, 112))
    with pytest.raises(ValueError, match="name 0 hallucinated and 0 correct objects"):
        calibrate("adhh", *loaded, [AnnotatedImage(picture, lambda caption: [])])
    with pytest.raises(ValueError, match="name 0 hallucinated and 1 correct objects"):
        calibrate("adhh", *loaded, [AnnotatedImage(picture, lambda caption: [ObjectWord(0, False)])])
    with pytest.raises(ValueError, match="give AnnotatedImage objects"):
        calibrate("adhh", *loaded, [picture])
