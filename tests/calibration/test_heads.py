"""Hallucination heads: influences equal those worked out by hand, and planted heads are found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from typer.testing import CliRunner

import vlmfix
from tests.support import families
from tests.support.methods import pairs
from vlmfix.calibration import heads
from vlmfix.calibration.calibrate import calibrate
from vlmfix.calibration.heads import (
    AnnotatedImage,
    ObjectWord,
    head_influences,
    mean_influences,
    ranking,
)
from vlmfix.cli.app import app
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.models.profiles import Profile, find_profile

ANSWER = [20, 31, 42, 53, 64, 75]


def by_hand(
    model: PreTrainedModel, inputs: dict[str, Tensor], place: int, layer: int = -1, head: int = 0
) -> float:
    """Probability of a token of the answer where a head gives zeros in the row before it."""
    new = torch.tensor([ANSWER[:place]], dtype=torch.long)
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], dim=1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = (whole["input_ids"] == families.IMAGE_TOKEN).int()

    def silence(projection: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        size = args[0].shape[-1] // model.config.get_text_config().num_attention_heads
        outputs = args[0].clone()
        outputs[0, -1, head * size : (head + 1) * size] = 0
        return (outputs,)

    attention = model.get_decoder().layers[layer].self_attn
    handle = attention.o_proj.register_forward_pre_hook(silence) if layer >= 0 else None
    with torch.no_grad():
        logits = model(**whole, use_cache=False).logits
    if handle is not None:
        handle.remove()
    return float(logits[0, -1].softmax(dim=-1)[ANSWER[place]])


@pytest.mark.parametrize(("tokens", "family"), pairs([10**6, 110], in_turn=True))  # one pass, several
def test_influences_equal_those_by_hand(
    tokens: int, family: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_TOKENS", tokens)
    inputs = families.prompt(family, model)
    before = by_hand(model, inputs, 3)
    places = [0, 3, 5]
    found = head_influences(model, inputs, ANSWER, places)
    expected = torch.tensor(
        [
            [
                [
                    by_hand(model, inputs, place) - by_hand(model, inputs, place, layer, head)
                    for head in range(4)
                ]
                for layer in range(families.LAYERS)
            ]
            for place in places
        ]
    )
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)
    assert (found != 0).all()
    assert by_hand(model, inputs, 3) == before


def test_ranking() -> None:
    generator = torch.Generator().manual_seed(0)
    influences = torch.randn(9, 3, 4, generator=generator)
    hallucinated = torch.tensor([True, False, False, True, False, True, False, False, True])
    differences = {}
    for layer in range(3):
        for head in range(4):
            wrong = [float(influences[token, layer, head]) for token in (0, 3, 5, 8)]
            right = [float(influences[token, layer, head]) for token in (1, 2, 4, 6, 7)]
            differences[layer, head] = sum(wrong) / 4 - sum(right) / 5
    found = ranking(*mean_influences(influences, hallucinated))
    assert found == sorted(differences, key=lambda pair: -differences[pair])


def test_equal_heads_rank_by_their_place() -> None:
    differences = torch.tensor([[0.5, 1.0], [1.0, 0.0]])
    assert ranking(differences, torch.zeros(2, 2)) == [(0, 1), (1, 0), (0, 0), (1, 1)]


def judge(caption: str) -> list[ObjectWord]:
    """Every word with more than four letters is an object; longer ones than six are not there."""
    starts = [0, *(place + 1 for place, letter in enumerate(caption) if letter == " ")]
    words = zip(starts, caption.split(" "), strict=True)
    return [ObjectWord(start, len(word) > 6) for start, word in words if len(word) > 4]


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_planted_heads_are_found_at_the_first_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = vlmfix.load(name)
    captions: list[str] = []

    def influences(_: Any, inputs: Any, token_ids: tuple[int, ...], places: list[int]) -> Tensor:
        """Head 3 of layer 5 and head 1 of layer 2 cause what is not there, head 0 of layer 4 all objects."""
        words = judge(captions[-1])
        planted = torch.zeros(len(places), 8, 6)
        for index, (word, place) in enumerate(zip(words, places, strict=True)):
            before = processor.tokenizer.decode(token_ids[:place])
            token = processor.tokenizer.decode(token_ids[place])
            assert captions[-1].startswith(before)
            assert captions[-1][word.start :].startswith(token.strip())
            assert len(before) <= word.start < len(before) + len(token)
            planted[index, 4, 0] = 0.9
            planted[index, 5, 3] = 0.3 if word.hallucinated else 0.05
            planted[index, 2, 1] = 0.2 if word.hallucinated else 0.05
        return planted

    def noted(caption: str) -> list[ObjectWord]:
        captions.append(caption)
        return judge(caption)

    monkeypatch.setattr(heads, "head_influences", influences)
    pictures = [render(sample_scene(7, index)) for index in range(3)]
    counted: list[int] = []
    images = [AnnotatedImage(picture, noted) for picture in pictures]
    found = calibrate("adhh", model, processor, images, progress=counted.append)
    answers = vlmfix.generate(model, processor, pictures, "Describe the image.", do_sample=False)
    assert [caption.strip() for caption in captions] == answers
    assert sum(counted) == 3
    assert found.values == {"adhh_heads": [[5, 3], [2, 1]]}
    words = [word for caption in captions for word in judge(caption)]
    assert found.findings["hallucinated object tokens"] == sum(word.hallucinated for word in words)
    assert found.findings["correct object tokens"] == sum(not word.hallucinated for word in words)
    assert found.findings["head 5:3"] == "0.3000 on hallucinated objects, 0.0500 on correct ones"


def test_on_the_command_line(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    scenes = [f"images/00000000000{number}.png" for number in (5, 6)]  # the model sees what is not there
    for name in ("instances.json", "captions.json", *scenes):
        shutil.copy(world / name, tmp_path / name)
    profile = tmp_path / "profiles" / "mine.yaml"
    arguments = ["calibrate", "--method", "adhh", "--images", str(tmp_path), "--output", str(profile)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert "2 pictures; 100 to 150 give a firmer result" in result.stderr
    heads = Profile.read(profile).get("adhh_heads")
    assert len(heads) == 2
    assert f"head {heads[0][0]}:{heads[0][1]}" in result.stdout
    monkeypatch.setenv("VLMFIX_PROFILES", str(profile.parent))
    model, _ = vlmfix.load()
    found = vlmfix.ADHH().resolve(model.config, find_profile(model))
    assert found.heads == tuple(sorted(map(tuple, heads)))


def test_captions_without_mistakes_or_without_judge(loaded: tuple[Any, Any]) -> None:
    picture = Image.new("RGB", (112, 112))
    with pytest.raises(ValueError, match="name 0 hallucinated and 0 correct objects"):
        calibrate("adhh", *loaded, [AnnotatedImage(picture, lambda caption: [])])
    with pytest.raises(ValueError, match="name 0 hallucinated and 1 correct objects"):
        calibrate("adhh", *loaded, [AnnotatedImage(picture, lambda caption: [ObjectWord(0, False)])])
    with pytest.raises(ValueError, match="give AnnotatedImage objects"):
        calibrate("adhh", *loaded, [picture])
