"""TAME: the vector of its specification, and models with naive attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

import vlmfix
from tests.support import families
from tests.support.full_matrices import step_logits
from tests.support.methods import values
from vlmfix.methods.attention.tame import sharpening, squared_norms


def test_vector() -> None:
    query = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [2.0, 2.0]]])[None]
    key = torch.tensor([[[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]], [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])[None]
    sums = squared_norms(query).sum(dim=1), squared_norms(key).sum(dim=1)
    assert [float(each) for each in sums] == [11.5, 11.0]
    factor = sharpening(*sums, 0.8)
    assert float(factor) == pytest.approx(1.770460, abs=1e-6)
    row = torch.tensor([4.242641, 0, 2.121320]) * factor
    torch.testing.assert_close(row, torch.tensor([7.511426, 0, 3.755713]), atol=1e-5, rtol=0)
    small = sharpening(torch.tensor([0.5, 2.0]), torch.tensor([0.0, 1.0]), 0.8)
    torch.testing.assert_close(small, torch.full((2,), 1.8**2))


@contextmanager
def naive(model: PreTrainedModel, inputs: dict[str, Tensor], gamma: float) -> Iterator[None]:
    """Within the block the model computes its attention in loops over samples and rows, without a cache."""
    real = inputs["attention_mask"].bool()
    image = (inputs["input_ids"] == families.IMAGE_TOKEN).any(dim=1)
    length = real.shape[1]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        norms = [states.square().sum(dim=-1).mean(dim=1).tolist() for states in (query, key)]
        scores = query @ key.repeat_interleave(groups, dim=1).transpose(2, 3) * kwargs["scaling"]
        for sample in range(len(query)):
            for row in range(query.shape[2]):
                rows = [each for each in range(length) if real[sample, each]] if row < length else [row]
                keys = [each for each in range(max(length, row + 1)) if each >= length or real[sample, each]]
                factor = 1.0
                for own, tokens in zip(norms, (rows, keys), strict=True):
                    factor *= 1 + gamma / math.log(max(sum(own[sample][each] for each in tokens), math.e))
                scores[sample, :, row] *= factor if image[sample] else 1.0
        scores = scores + attention_mask
        weights = scores.softmax(dim=-1)
        return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), None

    AttentionInterface.register("naive", attention)
    AttentionMaskInterface.register("naive", eager_mask)
    model.get_decoder().set_attn_implementation("naive")
    try:
        yield
    finally:
        model.get_decoder().set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_model_against_naive_attention(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    with naive(model, inputs, 2.0):
        expected = step_logits(model, inputs | {"use_cache": False}, steps=3)
    method = vlmfix.TAME(gamma=2.0)
    with method(model):
        found = step_logits(model, inputs, steps=3)
        without_cache = step_logits(model, inputs | {"use_cache": False}, steps=3)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(without_cache, expected, atol=2e-5, rtol=1e-4)
    stats = method.edit_stats()
    assert stats.layers_edited == list(range(families.LAYERS))
    assert stats.size is not None
    assert 1 < stats.size < 9


def test_a_gate_scales_what_new_tokens_get(llava: PreTrainedModel) -> None:
    """Half open is half of the number above 1, for the newest token; the prompt before it is edited."""
    inputs = families.prompt("llava", llava, (1, 2))
    found = {}
    for gate in (None, "always:1", "always:0.5", "always:0"):
        with vlmfix.TAME(gamma=2.0, gate=gate)(llava):
            found[gate] = values(llava, inputs, max_new_tokens=3)
    torch.testing.assert_close(found["always:1"], found[None])
    assert not torch.equal(found["always:0.5"], found[None])
    assert not torch.equal(found["always:0.5"], found["always:0"])
    assert not torch.equal(found["always:0"], values(llava, inputs, max_new_tokens=3))


def test_beside_methods_that_read_on_or_again(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    found = []
    for cache in (True, False):
        with vlmfix.TAME(gamma=2.0)(llava), vlmfix.PAI(alpha=1.0)(llava):
            found.append(step_logits(llava, inputs | {"use_cache": cache}))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_too_small_to_tell_is_a_reason(llava: PreTrainedModel) -> None:
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="gamma is too small to tell")
    with warns, vlmfix.TAME(gamma=1e-12)(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=1)


def test_values_out_of_range() -> None:
    with pytest.raises(ValueError, match="gamma is -1; it must be a number from 0 to 10"):
        vlmfix.TAME(gamma=-1)
