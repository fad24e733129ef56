"""VisionZip: the vector of its specification and an independent reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.engine.vision_attention import EncodedBlock, EncodedImage, EncoderTap
from vlmfix.errors import UnsupportedError
from vlmfix.methods.pruning.visionzip import VisionZip, dominant_patches, merge_remaining

CLASS_ATTENTION = torch.tensor([0.3, 0.4, 0.1, 0.45, 0.15, 0.04, 0.16])
KEYS = torch.tensor([[1, 0], [0, 1], [1, 0.1], [0, 2], [0.2, 1], [1, 1], [0.9, 0.2]])
FEATURES = torch.tensor([[1.0, 1], [2, 0], [3, 1], [4, 0], [5, 5], [6, 2], [7, 3]])


def naive(
    features: Tensor, keys: Tensor, dominant: list[int], count: int
) -> tuple[list[int], list[list[float]]]:
    """The formulas of the specification with plain loops in float64."""
    values, metric = features.double().tolist(), keys.double().tolist()
    rest = [i for i in range(len(values)) if i not in dominant]
    count = min(count, len(rest))
    stride = len(rest) // count
    targets = [rest[k * stride] for k in range(count)]
    members: dict[int, list[list[float]]] = {target: [] for target in targets}
    for i in rest:
        if i in targets:
            continue

        def likeness(target: int, i: int = i) -> float:
            product = sum(a * b for a, b in zip(metric[i], metric[target], strict=True))
            return product / (math.hypot(*metric[i]) * math.hypot(*metric[target]))

        members[max(targets, key=likeness)].append(values[i])
    merged = []
    for target in targets:
        total = list(values[target])
        for value in members[target]:
            total = [t + v / len(members[target]) for t, v in zip(total, value, strict=True)]
        merged.append(total)
    return targets, merged


def test_vector() -> None:
    halves = torch.stack([0.25 * CLASS_ATTENTION, 0.75 * CLASS_ATTENTION])
    dominant = dominant_patches(halves, 2)
    assert dominant.tolist() == [1, 3]
    targets, merged = merge_remaining(FEATURES, KEYS, dominant, 2)
    assert targets.tolist() == [0, 4]
    torch.testing.assert_close(merged, torch.tensor([[6.0, 3.0], [11.0, 7.0]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_against_the_naive_formulas_on_random_patches(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, keys = torch.randn(23, 5, generator=generator), torch.randn(23, 4, generator=generator)
    dominant = dominant_patches(torch.rand(3, 23, generator=generator), 3 * seed)
    for count in (1, 4, 9):
        targets, merged = merge_remaining(features, keys, dominant, count)
        expected, values = naive(features, keys, dominant.tolist(), count)
        assert targets.tolist() == expected
        torch.testing.assert_close(merged.double(), torch.tensor(values).double(), atol=1e-5, rtol=0)


def test_fewer_patches_left_than_targets() -> None:
    targets, merged = merge_remaining(FEATURES, KEYS, torch.tensor([0, 1, 2, 4, 6]), 10)
    assert targets.tolist() == [3, 5]
    assert torch.equal(merged, FEATURES[[3, 5]])
    targets, merged = merge_remaining(FEATURES, KEYS, torch.arange(7), 10)
    assert targets.tolist() == []
    assert merged.shape == (0, 2)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_equals_masking_and_merging(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    tap = EncoderTap(model)
    tap.install()
    encoded: list[EncodedImage] = []

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != 0:
            return None
        encoded[:] = tap.images
        states, dropped = states.clone(), image.clone()
        left = list(encoded)
        for b, mask in enumerate(image):
            places = mask.nonzero().flatten().tolist()
            while places:
                one = left.pop(0)
                own, places = places[: one.count], places[one.count :]
                for block in one.blocks:
                    for place, value in kept_of(block, states[b, own]).items():
                        dropped[b, own[place]] = False
                        states[b, own[place]] = value
        return dropped, states

    def kept_of(block: EncodedBlock, tokens: Tensor) -> dict[int, Tensor]:
        shown = [p for p in range(len(block.places)) if block.places[p] >= 0]
        if len(shown) <= 3:
            return {int(block.places[p]): tokens[block.places[p]] for p in shown}
        patches = 2 if block.class_feature is None else 1
        ranked = sorted(shown, key=lambda p: -float(block.attention[:, p].double().sum()))
        dominant = ranked[:patches]
        rest = [p for p in shown if p not in dominant]
        features = block.features if block.features is not None else tokens
        merged = features[rest[0]] + features[rest[1:]].mean(dim=0)
        kept = {int(block.places[p]): tokens[block.places[p]] for p in dominant}
        project = tap.project if block.features is not None else (lambda states: states)
        kept[int(block.places[rest[0]])] = project(merged[None])[0]
        if block.class_feature is not None:
            kept[int(block.places[rest[1]])] = tap.project(block.class_feature[None])[0]
        return kept

    try:
        expected = masked_logits(model, inputs, enter=enter)
    finally:
        tap.remove()
    with VisionZip(dominant_tokens=2, contextual_tokens=1)(model), torch.no_grad():
        pruned = model(**inputs).logits
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dominant_tokens": 0}, r"dominant_tokens is 0; it must be a number of tokens, 1 or more, or None"),
        ({"contextual_tokens": -1}, r"contextual_tokens is -1; it must be a number of tokens, 0 or more"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionZip(**parameters)


def test_other_encoders_are_refused(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(UnsupportedError, match="internvl is not read"), VisionZip()(models["internvl"]):
        pass


def test_dominant_tokens_alone(models: dict[str, PreTrainedModel]) -> None:
    for family in ("llava", "qwen2_5_vl"):
        method = VisionZip(dominant_tokens=3, contextual_tokens=0)
        with method(models[family]), torch.no_grad():
            models[family](**families.prompt(family, models[family], (1, 2)))
        assert method.edit_stats().site_share
