"""Attention to generated text at objects: what the model itself attends to when it writes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import vlmfix
from vlmfix.calibration.calibrate import calibrate
from vlmfix.calibration.heads import AnnotatedImage, ObjectWord
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare, text_and_spans
from vlmfix.models.profiles import Profile

LONG = 6


def judge(caption: str) -> list[ObjectWord]:
    """Every word with more than four letters is an object; longer ones than six are not there."""
    starts = [0, *(place + 1 for place, letter in enumerate(caption) if letter == " ")]
    words = zip(starts, caption.split(" "), strict=True)
    return [ObjectWord(start, len(word) > LONG) for start, word in words if len(word) > 4]


def test_means_are_those_of_the_steps_that_wrote_the_objects() -> None:
    model, processor = vlmfix.load("tiny-llava")
    picture, counted = render(sample_scene(7, 0)), []
    found = calibrate("adaiat", model, processor, [AnnotatedImage(picture, judge)], progress=counted.append)
    assert sum(counted) == 2
    model.set_attn_implementation("eager")
    inputs: Any = prepare([[picture]], ["Describe the image."], processor)
    output = model.generate(
        **inputs, max_new_tokens=128, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    length = inputs["input_ids"].shape[1]
    text, spans = text_and_spans(output.sequences[0, length:].tolist(), processor, skip_special_tokens=True)
    means: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for word in judge(text):
        step = next(place for place, (_, end) in enumerate(spans) if end > word.start)
        if step:
            rows = torch.stack([layer[0, :, -1, length:] for layer in output.attentions[step]])
            means[word.hallucinated].append(rows.mean(dim=-1))
    for name, wrong in (("real", False), ("hallucinated", True)):
        expected = torch.stack(means[wrong]).mean(dim=0)
        table = torch.tensor(found.values[f"adaiat_{name}"])
        torch.testing.assert_close(table, expected, atol=1e-6, rtol=2e-3)
    profile = Profile(
        "x", {}, {key: {"value": value, "source": "a test"} for key, value in found.values.items()}, None
    )  # type: ignore[arg-type]
    resolved = vlmfix.AdaIAT().resolve(model.config, profile)
    assert resolved.real == tuple(map(tuple, found.values["adaiat_real"]))


def test_both_kinds_of_objects_are_needed() -> None:
    loaded = vlmfix.load("tiny-llava")
    picture = Image.new("RGB", (112, 112))
    with pytest.raises(ValueError, match="0 hallucinated and 0 correct objects after their first token"):
        calibrate("adaiat", *loaded, [AnnotatedImage(picture, lambda caption: [ObjectWord(0, True)])])
    with pytest.raises(ValueError, match="adaiat is calibrated on captions that can be judged"):
        calibrate("adaiat", *loaded, [picture])
