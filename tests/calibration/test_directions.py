"""Directions of VTI and Nullu, found on a few pictures, against the same worked out slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import vlmfix
from vlmfix.calibration.calibrate import calibrate, write_profile
from vlmfix.calibration.directions import CaptionPair, masked_copies
from vlmfix.evaluation.datasets import render, sample_scene
from vlmfix.inference.chat import prepare
from vlmfix.methods.steering.nullu import difference_subspace
from vlmfix.methods.steering.vti import direction
from vlmfix.models.directions import read_directions
from vlmfix.models.profiles import find_profile

PAIRS = [
    CaptionPair.of_objects(render(sample_scene(7, index)), present, ["zebra", "apple", "kite"])
    for index, present in enumerate((["cat"], ["cat", "dog", "orange"], ["cup", "fork"]))
]


def test_captions_differ_in_every_second_object() -> None:
    picture = Image.new("RGB", (4, 4))
    pair = CaptionPair.of_objects(picture, ["cat", "dog", "orange"], ["apple", "kite", "bed"])
    assert pair.truthful == "The image shows a cat, a dog and an orange."
    assert pair.hallucinated == "The image shows an apple, a dog and a kite."
    single = CaptionPair.of_objects(picture, ["cat"], ["apple"])
    assert (single.truthful, single.hallucinated) == ("The image shows a cat.", "The image shows an apple.")


def test_masks_keep_a_patch_in_a_hundred() -> None:
    """Of 12 x 12 patches 2 stay, and a rest at the edge never does."""
    pixels = torch.randn(1, 3, 50, 48, generator=torch.Generator().manual_seed(0))
    copies = masked_copies(pixels, 4, seed=1)
    assert copies.shape == (50, 3, 50, 48)
    kept = (copies == pixels).all(dim=1)
    assert torch.equal(kept.sum(dim=(1, 2)), torch.full((50,), 2 * 16))
    assert not kept[:, 48:].any()
    cells = kept[:, :48].unflatten(1, (12, 4)).unflatten(3, (12, 4)).sum(dim=(2, 4))
    assert set(cells.flatten().tolist()) == {0, 16}
    means = pixels.mean(dim=(2, 3), keepdim=True).expand_as(copies)
    torch.testing.assert_close(
        copies[~kept[:, None].expand_as(copies)], means[~kept[:, None].expand_as(copies)]
    )
    assert len(torch.unique(kept.flatten(1), dim=0)) > 40
    assert torch.equal(masked_copies(pixels, 4, seed=1), copies)
    assert not torch.equal(masked_copies(pixels, 4, seed=2), copies)


@torch.no_grad()
def hidden_states(loaded: tuple[Any, Any], pair: CaptionPair, caption: str) -> Sequence[Tensor]:
    """Of the whole text at once, tokenised by the processor; `(tokens, hidden)` each."""
    model, processor = loaded
    inputs = prepare([[pair.image]], ["Describe the image."], processor)
    caption_ids = processor.tokenizer(caption, add_special_tokens=False, return_tensors="pt")["input_ids"]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], caption_ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        more = torch.zeros_like(caption_ids)
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], more], dim=1)
    return [each[0] for each in model(**inputs, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_directions_of_text_and_subspaces(name: str) -> None:
    model, processor = loaded = vlmfix.load(name)
    rows, means = [], []
    for pair in PAIRS:
        true, false = (hidden_states(loaded, pair, each) for each in (pair.truthful, pair.hallucinated))
        rows.append(torch.cat([one[-1] - other[-1] for one, other in zip(true, false, strict=True)]))
        means.append([(one.mean(0) - other.mean(0)) / 2 for one, other in zip(true, false, strict=True)])
    counted: list[int] = []
    [found] = calibrate("vti", model, processor, PAIRS, progress=counted.append).directions.values()
    assert counted == [1] * len(PAIRS)
    wanted = direction(torch.stack(rows)).view(9, 192)[1:]
    torch.testing.assert_close(found["text"], wanted, atol=1e-4, rtol=1e-3)
    assert ("image" in found) == (name == "tiny-llava")
    [found] = calibrate("nullu", model, processor, PAIRS).directions.values()
    assert found["subspaces"].shape == (8, len(PAIRS), 192)
    for layer in range(8):
        wanted = difference_subspace(torch.stack([own[layer + 1] for own in means]), 1)
        assert float((found["subspaces"][layer, :1] @ wanted.T).abs()) == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_directions_of_the_encoder() -> None:
    """For every token by itself, over all layers together."""
    model, processor = vlmfix.load("tiny-llava")
    differences = []
    for number, pair in enumerate(PAIRS):
        pixels = prepare([[pair.image]], ["Describe the image."], processor)["pixel_values"]
        tower = model.model.vision_tower
        stock = tower(pixels, output_hidden_states=True).hidden_states
        masked = tower(masked_copies(pixels, 14, seed=number), output_hidden_states=True).hidden_states
        differences.append([other.mean(0) - own[0] for own, other in zip(stock[1:], masked[1:], strict=True)])
    [found] = calibrate("vti", model, processor, PAIRS).directions.values()
    assert found["image"].shape == (5, 65, 160)
    for token in (0, 1, 40):
        rows = torch.stack([torch.cat([layer[token] for layer in own]) for own in differences])
        wanted = direction(rows).view(5, 160)
        torch.testing.assert_close(found["image"][:, token], wanted, atol=1e-4, rtol=1e-3)


def test_what_was_found_is_used() -> None:
    model, processor = vlmfix.load("tiny-llava")
    for method in ("vti", "nullu"):
        path = write_profile(model, calibrate(method, model, processor, PAIRS), "mine")
    profile = find_profile(model)
    assert profile is not None
    vti, nullu = vlmfix.VTI(), vlmfix.Nullu(rank=3)
    for method, key in ((vti, "vti_directions"), (nullu, "nullu_directions")):
        file = method.resolve(model.config, profile).directions
        assert file == str(path.with_name(f"{path.stem}.{key}.safetensors"))
        read_directions(file, method.name, model.config)
        vlmfix.generate(model, processor, PAIRS[0].image, "Describe the image.", method, max_new_tokens=2)
        stats = method.edit_stats()
        assert stats.size is not None
        assert stats.size > 0
    with pytest.raises(ValueError, match=r"rank is 4, and .* has subspaces of 3 dimensions; use up to 3"):
        vlmfix.Nullu().resolve(model.config, profile)


@pytest.mark.parametrize("method", ["vti", "nullu"])
@pytest.mark.parametrize("given", [PAIRS[:1], [Image.new("RGB", (112, 112))] * 3])
def test_other_things_than_pairs_are_refused(method: str, given: Any) -> None:
    with pytest.raises(ValueError, match=f"{method} is calibrated on 2 or more CaptionPair objects"):
        calibrate(method, *vlmfix.load(), given)
