"""Calibration finds the sinks that were planted, and says so where there are none."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vlmfix
from evals.data import render, sample_scene
from vlmfix.models.calibration import calibrate_sinks, sink_threshold, write_profile
from vlmfix.models.profiles import find_profile


@pytest.mark.parametrize(
    ("hidden_size", "threshold"), [(4096, 20.0), (1600, 20.0), (1024, 16.0), (192, 6.93)]
)
def test_threshold_can_be_reached(hidden_size: int, threshold: float) -> None:
    assert sink_threshold(hidden_size) == threshold < hidden_size**0.5


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_planted_sinks_are_found_and_used(name: str) -> None:
    model, processor = vlmfix.load(name)
    shipped = find_profile(model.config)
    assert shipped is not None
    pictures = [render(sample_scene(7, index)) for index in range(6)]
    counted: list[int] = []
    found = calibrate_sinks(model, processor, pictures, progress=counted.append)
    assert sum(counted) == found.prompts == len(pictures)
    assert set(found.sink_dimensions) <= set(shipped.get("sink_dimensions"))
    assert 0 < found.visual_sink_share < 0.5
    path = write_profile(model, found, "A model / of mine")
    assert path.name == "a-model-of-mine.yaml"
    mine = find_profile(model.config)
    assert mine is not None
    assert mine.path == path
    assert vlmfix.VAR().resolve(model.config, mine).sink_dimensions == found.sink_dimensions


def test_a_model_without_sinks_says_so() -> None:
    model, processor = vlmfix.load("tiny-llava")
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="no dimension of the first token exceeds"):
        calibrate_sinks(model, processor, [Image.new("RGB", (112, 112))])


def test_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        calibrate_sinks(*vlmfix.load("tiny-llava"), [])
