"""CausalMM: the vectors of its specification, and its branches read alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    WAY_NAMES,
    WAYS,
    Inputs,
    answered,
    check_branches,
    images_of,
    in_some_ways,
    last_logits,
)
from tests.support.full_matrices import full_matrices
from tests.support.methods import values
from vlmfix.methods.logits.attention_edits import chance, edited_map, edited_weights
from vlmfix.methods.logits.causalmm import away_from_all, patch_factors

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")


def test_vector() -> None:
    logits = torch.tensor([[2, 1, 0.5, -1, -3]])
    branches = [torch.tensor([[1.5, 1.2, -0.5, -1, 0]]), torch.tensor([[1, 1.5, 0, -2, -1]])]
    out = away_from_all(logits, branches, 1.0)
    torch.testing.assert_close(out[0, :3], torch.tensor([3.5, 0.3, 2.0]))
    torch.testing.assert_close(out[0, :3].softmax(dim=0), torch.tensor([0.791207, 0.032251, 0.176542]))
    one = away_from_all(logits, branches[:1], 0.5)
    torch.testing.assert_close(one, logits + 0.5 * (logits - branches[0]))


ROWS = torch.tensor([[1.0, 0, 0], [0.6, 0.4, 0], [0.2, 0.3, 0.5]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reversed", [[0, 0, 0], [0, 0.2, 0], [0.3, 0.2, 0]]),
        ("reversed_normalised", [[0, 0, 0], [0, 1, 0], [0.6, 0.4, 0]]),
        ("uniform", [[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]),
    ],
)
def test_vectors_of_the_text(kind: str, expected: list[list[float]]) -> None:
    seen = torch.ones(3, 3, dtype=torch.bool).tril()[None]
    given = {"kind": kind, "seed": 0, "padding": torch.tensor([0])}
    found = edited_weights(0, torch.arange(3), ROWS[None, None], seen, **given)
    torch.testing.assert_close(found[0, 0], torch.tensor(expected))


def test_chance_depends_on_layer_head_row_and_key_alone() -> None:
    like = torch.empty(1, 3, 40, 40)
    rows, none = torch.arange(40), torch.tensor([0])
    whole = chance(2, rows, like, seed=5, padding=none)
    assert whole.min() >= 0
    assert whole.max() < 1
    assert whole.mean() == pytest.approx(0.5, abs=0.02)
    assert whole.std() == pytest.approx(12**-0.5, abs=0.01)
    for axis in (1, 2, 3):  # neighbours have nothing to do with each other
        pairs = torch.stack([each.flatten() for each in (whole.narrow(axis, 0, 2).unbind(axis))])
        assert pairs.corrcoef()[0, 1].abs() < 0.4
    padded = chance(2, torch.tensor([9]), torch.empty(2, 3, 1, 14), seed=5, padding=torch.tensor([4, 0]))
    assert torch.equal(padded[0, :, :, 4:], whole[0, :, 5:6, :10])
    assert torch.equal(padded[1], whole[0, :, 9:10, :14])
    assert not torch.equal(chance(3, rows, like, seed=5, padding=none), whole)
    assert not torch.equal(chance(2, rows, like, seed=2**31, padding=none), whole)


def test_edits_of_a_map() -> None:
    weights = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    pixels = torch.ones(3)
    shuffled = edited_map(weights, "shuffle", pixels, 0)
    assert torch.equal(shuffled.flatten().sort().values, weights.flatten().sort().values)
    assert not torch.equal(shuffled, weights)
    assert not torch.equal(shuffled, edited_map(weights, "shuffle", pixels, 1))
    assert not torch.equal(shuffled, edited_map(weights, "shuffle", 2 * pixels, 0))
    torch.testing.assert_close(edited_map(weights, "uniform", pixels, 0), torch.full((2, 5, 5), 0.2))
    for head in range(2):
        found = edited_map(weights, "reversed", pixels, 0)[head]
        torch.testing.assert_close(found, weights[head].max() - weights[head])
    drawn = edited_map(torch.ones(4, 50, 50), "random", pixels, 0)
    assert drawn.mean() == pytest.approx(1, abs=0.03)
    assert 1.9 < drawn.max() < 2


def test_a_map_becomes_a_picture_of_the_patches() -> None:
    """Bilinearly, the middles of pixels on middles: 4 of 16 are means of 4 each."""
    weights = torch.arange(16.0).view(1, 4, 4)
    expected = torch.tensor([2.5, 4.5, 10.5, 12.5])
    torch.testing.assert_close(patch_factors(torch.cat([weights, weights + 2]), (2, 2)), expected + 1)


def map_of(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """All weights of the layer whose features the model uses, of images `(tiles, 3, height, width)`."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        weights = tower(pixels, output_attentions=True).attentions[model.config.vision_feature_layer]
    tower.set_attn_implementation("sdpa")
    return weights


@pytest.mark.parametrize(
    ("family", "edit", "way", "fused"),
    [
        pytest.param("llava", "shuffle", *WAYS[2], id=f"shuffle-{WAY_NAMES[2]}"),
        pytest.param("llava", "random", *WAYS[3], id=f"random-{WAY_NAMES[3]}"),
        pytest.param("llava_next", "reversed", *WAYS[0], id="reversed-tiles"),
    ],
)
def test_vision_branch_equals_brute_force(
    model: PreTrainedModel, family: str, edit: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, (1, 1) if way else (1, 2))
    method = vlmfix.CausalMM(vision_edit=edit, beta=0.001, fused=fused, seed=3)
    projector = model.model.multi_modal_projector

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        tiles = single["pixel_values"].view(-1, 3, 56, 56)
        factors = torch.stack(
            [
                patch_factors(edited_map(weights, edit, tile, 3), (4, 4))
                for weights, tile in zip(map_of(model, tiles), tiles, strict=True)
            ]
        )
        handle = projector.register_forward_pre_hook(lambda _, args: (args[0] * factors[..., None],))
        try:
            return [last_logits(model, answered(single, new))]
        finally:
            handle.remove()

    check_branches(model, family, method, inputs, alone, steps=3, **way)


@in_some_ways
def test_text_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    kind = "reversed" if way else "uniform"
    method = vlmfix.CausalMM(vision_edit=None, text_edit=kind, beta=0.001, fused=fused)

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor:
        weights = scores.softmax(dim=-1)
        seen = torch.arange(weights.shape[1]) <= position
        if kind == "uniform":
            return (seen / (position + 1)).expand_as(weights)
        return torch.where(seen, weights.amax(dim=1, keepdim=True) - weights, 0.0)

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        with full_matrices(model, edit):
            return [last_logits(model, answered(single, new))]

    check_branches(model, family, method, inputs, alone, steps=3, **way)


def test_both_by_chance_keep_the_promises(llava: PreTrainedModel) -> None:
    """The same in a batch, alone, without a cache and in rows of a prompt that come in blocks."""
    inputs = families.prompt("llava", llava, (1, 2, 0, 1))
    method = vlmfix.CausalMM(vision_edit="random", text_edit="random", beta=0.001)
    stock = values(llava, inputs, max_new_tokens=3)
    with method(llava):
        batch = values(llava, inputs, max_new_tokens=3)
        assert (batch - stock).abs().amax(dim=(0, 2))[[0, 1, 3]].min() > 1e-3
        assert torch.equal(batch[:, 2], stock[:, 2])
        uncached = values(llava, inputs, max_new_tokens=3, use_cache=False)
        torch.testing.assert_close(uncached, batch, atol=1e-4, rtol=1e-4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vlmfix.engine.attention_rows._BLOCK", 500)
            torch.testing.assert_close(values(llava, inputs, max_new_tokens=3), batch, atol=1e-4, rtol=1e-4)
        for row, single in enumerate(families.split("llava", llava, inputs)):
            alone = values(llava, single, max_new_tokens=3)
            torch.testing.assert_close(alone[:, 0], batch[:, row], atol=1e-4, rtol=1e-4)
    size = method.edit_stats().size
    assert size == pytest.approx(1, abs=0.2)


def test_shuffled_maps_leave_nearly_nothing_of_the_image(llava: PreTrainedModel) -> None:
    method = vlmfix.CausalMM()
    with method(llava):
        values(llava, families.prompt("llava", llava), max_new_tokens=2)
    assert method.edit_stats().size == pytest.approx(1 / 17, rel=0.2)


def test_encoders_whose_maps_are_not_read(models: dict[str, PreTrainedModel]) -> None:
    for family, message in (
        ("qwen2_5_vl", "goes by the attention of a class token"),
        ("internvl", "is not read"),
    ):
        with pytest.raises(vlmfix.UnsupportedError, match=message):
            vlmfix.CausalMM()(models[family]).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": -1}, "gamma is -1; it must be"),
        ({"vision_edit": "swap"}, "vision_edit is 'swap'; it must be one of 'shuffle'"),
        ({"text_edit": "shuffle"}, "text_edit is 'shuffle'; it must be one of 'reversed'"),
        ({"vision_edit": None}, "one of them must say"),
        ({"seed": -1}, "seed is -1; it must be"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.CausalMM(**parameters)
