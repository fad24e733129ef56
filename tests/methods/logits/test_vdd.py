"""VDD: the vector of its specification, its branches read alone, and what stands for an image."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    Inputs,
    check_branches,
    images_of,
    in_some_ways,
    text_ids,
    text_logits,
)
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.methods.logits.base import plausible
from vlmfix.methods.logits.vdd import debias, image_spans
from vlmfix.models.profiles import find_profile

UNKNOWN = 4


def test_vector() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
    branches = [torch.tensor([[1.5, 1.2, -0.5, -1.0, 0.0]]), torch.tensor([[0.5, 1.4, 0.5, -2.0, 1.0]])]
    mixed = debias(logits, branches, 1.0)
    torch.testing.assert_close(mixed[0, :3], torch.tensor([3.0, 0.7, 1.0]), atol=1e-6, rtol=0)
    shares = mixed.masked_fill(~plausible(logits, 0.1), -math.inf).softmax(-1)[0]
    torch.testing.assert_close(shares, torch.tensor([0.809327, 0.081142, 0.109531, 0, 0]), atol=1e-6, rtol=0)


def test_formula_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, first, second = (torch.randn(4, 9, generator=generator) for _ in range(3))
    mixed = debias(logits, [first, second], 0.7)
    for row in range(4):
        for token in range(9):
            own = float(logits[row, token])
            other = (float(first[row, token]) + float(second[row, token])) / 2
            assert float(mixed[row, token]) == pytest.approx(own + 0.7 * (own - other), abs=1e-5)


@in_some_ways
@pytest.mark.parametrize("reference", ["both", "unknown"])
def test_branches_equal_brute_force(
    model: PreTrainedModel, family: str, reference: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        prompts = {
            "no_image": text_ids(model, single),
            "unknown": text_ids(model, single, instead=UNKNOWN),
        }
        wanted = prompts if reference == "both" else [reference]
        return [text_logits(model, [*prompts[each], *new]) for each in wanted]

    method = vlmfix.VDD(beta=0.001, reference=reference, unknown_token_id=UNKNOWN, fused=fused)
    check_branches(model, family, method, inputs, alone, steps=5, **way)


def run_of(model: PreTrainedModel, ids: list[list[int]], **inputs: Tensor) -> DecodeContext:
    prompt_ids = torch.tensor(ids)
    layout = PromptLayout.from_image_tokens(prompt_ids == families.IMAGE_TOKEN, (prompt_ids != 0).long())
    return DecodeContext(layout, num_layers=5, prompt_ids=prompt_ids, inputs=inputs, config=model.config)


IMAGE, START, END = families.IMAGE_TOKEN, families.VISION_START, families.VISION_END


def test_markers_belong_to_an_image_where_they_touch_it(models: dict[str, PreTrainedModel]) -> None:
    """Two images side by side, then one that nothing marks, and marks around nothing."""
    images = [START, *[IMAGE] * 4, END, START, *[IMAGE] * 6, END, 7, *[IMAGE] * 4]
    ids = [[1, START, 5, *images, START, END, 9, START]]
    grids = torch.tensor([[1, 4, 4], [1, 4, 6], [1, 4, 4]])
    context = run_of(models["qwen2_5_vl"], ids, pixel_values=torch.zeros(56, 1176), image_grid_thw=grids)
    assert image_spans(context) == [[(3, 9), (9, 17), (18, 22)]]
    blocks = context.image_blocks[0].nonzero().flatten().tolist()
    assert blocks == [*range(3, 17), *range(18, 22)]


def test_images_side_by_side_without_markers(llava: PreTrainedModel) -> None:
    ids = [[0, 1, START, *[IMAGE] * 32, END, 8], [1, *[IMAGE] * 16, 5, *[IMAGE] * 16, 6, 7, 8]]
    context = run_of(llava, ids, pixel_values=torch.zeros(4, 3, 56, 56))
    assert image_spans(context) == [[(3, 19), (19, 35)], [(1, 17), (18, 34)]]


def test_internvl_has_its_markers_from_the_processor(models: dict[str, PreTrainedModel]) -> None:
    context = run_of(
        models["internvl"], [[1, START, *[IMAGE] * 4, END, 8]], pixel_values=torch.zeros(1, 3, 56, 56)
    )
    with pytest.raises(vlmfix.UnsupportedError, match="written around the images of internvl is not known"):
        image_spans(context)
    context.processor = families.PROCESSOR
    assert image_spans(context) == [[(1, 7)]]


def test_without_ids_markers_are_not_known(models: dict[str, PreTrainedModel]) -> None:
    for family, known in (("llava", True), ("qwen2_5_vl", False)):
        context = run_of(models[family], [[1, START, IMAGE, END, 8]])
        context.prompt_ids = None
        if known:
            assert torch.equal(context.image_blocks, context.layout.image_tokens)
        else:
            with pytest.raises(vlmfix.UnsupportedError, match="pass its input_ids"):
                _ = context.image_blocks


def test_unknown_token(llava: PreTrainedModel) -> None:
    """The profile has it, or it is asked for by name, unless nobody needs it."""
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32064}
    config = AutoConfig.for_model("llava", text_config={"model_type": "llama", **shape})
    assert vlmfix.VDD().resolve(config, find_profile(config)).unknown_token_id == 0
    with pytest.raises(ValueError, match="pass unknown_token_id, or reference='no_image'"):
        vlmfix.VDD()(llava).__enter__()
    with pytest.raises(
        ValueError, match="unknown_token_id is 120; the tokens of this model go from 0 to 119"
    ):
        vlmfix.VDD(unknown_token_id=120)(llava).__enter__()
    with vlmfix.VDD(reference="no_image")(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 101}, "alpha is 101"),
        ({"reference": "text"}, "reference is 'text'; it must be one of 'both', 'no_image', 'unknown'"),
        ({"unknown_token_id": -1}, "unknown_token_id is -1; it must be a token id"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.VDD(**parameters)
