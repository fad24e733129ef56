"""Calibration finds the sinks that were planted, and says so where there are none."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from operator import mul
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlmfix
from vlmfix.calibration.calibrate import calibrate, write_profile
from vlmfix.calibration.schedules import change_point, dense_layers, kept_ratios
from vlmfix.calibration.sinks import sink_threshold
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.methods.pruning.base import mean_tokens
from vlmfix.models.digest import weights_digest
from vlmfix.models.profiles import Profile, find_profile


@pytest.mark.parametrize(
    ("hidden_size", "threshold"), [(4096, 20.0), (1600, 20.0), (1024, 16.0), (192, 6.93)]
)
def test_threshold_can_be_reached(hidden_size: int, threshold: float) -> None:
    assert sink_threshold(hidden_size) == threshold < hidden_size**0.5


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_planted_sinks_are_found_and_used(name: str) -> None:
    model, processor = vlmfix.load(name)
    shipped = find_profile(model)
    assert shipped is not None
    pictures = [render(sample_scene(7, index)) for index in range(6)]
    counted: list[int] = []
    found = calibrate("var", model, processor, pictures, progress=counted.append)
    assert sum(counted) == len(pictures)
    assert set(found.values["sink_dimensions"]) <= set(shipped.get("sink_dimensions"))
    assert 0 < found.findings["visual sink share"] < 0.5
    path = write_profile(model, found, "A model / of mine")
    assert path.name == f"a-model-of-mine-{weights_digest(model)[-8:]}.yaml"
    mine = find_profile(model)
    assert mine is not None
    assert mine.path == path
    assert vlmfix.VAR().resolve(model.config, mine).sink_dimensions == tuple(found.values["sink_dimensions"])


def test_a_model_without_sinks_says_so() -> None:
    model, processor = vlmfix.load("tiny-llava")
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="no dimension of the first token exceeds"):
        calibrate("var", model, processor, [Image.new("RGB", (112, 112))])


def test_no_images() -> None:
    with pytest.raises(ValueError, match="no images"):
        calibrate("var", *vlmfix.load("tiny-llava"), [])
    with pytest.raises(ValueError, match="vhr has nothing to calibrate; var, gift, adaptinfer, dyvte, "):
        calibrate("vhr", *vlmfix.load("tiny-llava"), [Image.new("RGB", (112, 112))])
    with pytest.raises(ValueError, match=r"unknown method 'vrr' \(did you mean 'v"):
        calibrate("vrr", *vlmfix.load("tiny-llava"), [Image.new("RGB", (112, 112))])


def test_calibrations_of_several_methods_share_a_profile(tmp_path: Path) -> None:
    model, processor = vlmfix.load("tiny-llava")
    pictures = [render(sample_scene(7, index)) for index in range(4)]
    for method in ("gift", "adaptinfer"):
        path = write_profile(model, calibrate(method, model, processor, pictures), "mine")
    profile = find_profile(model)
    assert profile is not None
    assert profile.path == path
    assert set(Profile.read(path).values) == {
        "gift_saliency_layer",
        "gift_enhanced_layers",
        "adaptinfer_schedules",
    }
    assert profile.get("sink_dimensions")  # of the shipped profile, which goes on to count
    assert vlmfix.GIFT().resolve(model.config, profile).saliency_layer in range(8)
    for budget in profile.get("adaptinfer_schedules"):
        method = vlmfix.AdaptInfer(budget=budget)
        with method(model):
            vlmfix.generate(model, processor, pictures[0], "Describe the image.", max_new_tokens=1)
        size = method.edit_stats().size
        assert size is not None
        assert abs(size / 64 - float(budget.rstrip("%")) / 100) < 0.06


def test_change_points() -> None:
    curve = np.cumsum([0.1, 0.1, 0.1, 0.9, 0.8, 0.05, 0.05, 0.05])
    assert change_point(curve) == 3
    generator = np.random.default_rng(0)
    for _ in range(50):
        curve = np.cumsum(generator.random(12))
        costs = {
            start: curve[:start].var() * start + curve[start:].var() * (12 - start) for start in range(2, 11)
        }
        assert change_point(curve) == min(costs, key=lambda start: costs[start])
    with pytest.raises(ValueError, match="3 layers"):
        change_point(curve[:3])


def test_dense_layers_are_apart() -> None:
    counts = Counter({3: 9, 4: 8, 10: 7, 20: 9, 21: 1, 31: 50})
    assert dense_layers(counts, 32) == [3, 10, 20]


@pytest.mark.parametrize("layers", [(1, 10, 20), (2, 5), (4,)])
def test_ratios_reach_the_mean(layers: tuple[int, ...]) -> None:
    for share in (0.2, 0.3, 0.5):
        ratios = kept_ratios(share, 32, layers)
        assert ratios is not None
        kept = list(accumulate([576.0, *ratios], mul))[1:]
        assert abs(mean_tokens(576, 32, layers, kept) / 576 - share) < 0.002
    assert kept_ratios(0.01, 32, layers) is None
