"""The embedded models see: a small sample of what `training/report.py` measures on 500 scenes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vlmfix
from vlmfix.evaluation.datasets import render, sample_scene

SCENES = 24
UNLIKELY = ("boat", "toilet", "pizza", "laptop")


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_yes_and_no_follow_the_picture(name: str) -> None:
    model, processor = vlmfix.load(name)
    pictures, questions, truth = [], [], []
    for index in range(SCENES):
        scene = sample_scene(2024, index)
        present = {item.category for item in scene.objects}
        largest = max(scene.objects, key=lambda item: item.box[2] * item.box[3]).category
        absent = next(category for category in UNLIKELY if category not in present)
        for category, answer in ((largest, "Yes"), (absent, "No")):
            pictures.append(render(scene))
            questions.append(f"Is there a {category} in the image?")
            truth.append(answer)
    answers = vlmfix.generate(model, processor, pictures, questions, max_new_tokens=4, batch_size=16)
    right = sum(answer.startswith(expected) for answer, expected in zip(answers, truth, strict=True))
    blind = vlmfix.generate(
        model, processor, [Image.new("RGB", (112, 112), "grey")] * len(questions), questions, max_new_tokens=4
    )
    guessed = sum(answer.startswith(expected) for answer, expected in zip(blind, truth, strict=True))
    assert right >= 0.8 * len(truth)
    assert guessed <= 0.65 * len(truth)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_var_acts_with_the_shipped_profile(name: str) -> None:
    model, processor = vlmfix.load(name)
    pictures = [render(sample_scene(5, index)) for index in range(8)]
    changed = []

    class Counting(vlmfix.VAR):
        def edit_weights(self, run, layer, weights):  # type: ignore[no-untyped-def]
            edited = super().edit_weights(run, layer, weights)
            changed.append((edited != weights).any(dim=-1).float().mean().item())
            return edited

    vlmfix.generate(model, processor, pictures, "Describe the image.", Counting(), max_new_tokens=20)
    assert torch.tensor(changed).mean() > 0.01
