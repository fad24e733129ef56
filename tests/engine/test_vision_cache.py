"""Images encoded once for several prompts, with the very same answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.support import families
from tests.support.methods import attached
from vlmfix.engine.vision_cache import cached_vision


@pytest.fixture
def encoded(model: PreTrainedModel) -> Any:
    """Counts the passes of the vision encoder."""
    tower: nn.Module = getattr(model.base_model, "visual", None) or model.base_model.vision_tower
    calls: list[int] = []
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def answer(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=4, do_sample=False, **kwargs)


def test_equal_images_are_encoded_once(model: PreTrainedModel, family: str, encoded: list[int]) -> None:
    """Another question, and beams, which multiply the output of the encoder in place."""
    inputs = families.prompt(family, model, (2,))
    other = {name: value.clone() for name, value in inputs.items()}
    other["input_ids"][:, -3:] = torch.tensor([7, 8, 9])
    calls = [(inputs, {}), (other, {"num_beams": 2}), (other, {})]
    stock = [answer(model, each, **kwargs) for each, kwargs in calls]
    encoded.clear()
    with cached_vision(model):
        cached = [answer(model, each, **kwargs) for each, kwargs in (calls[0], calls[2])]
        assert len(encoded) == 1
        beams = answer(model, other, num_beams=2)
        again = answer(model, inputs)
    assert torch.equal(cached[0], stock[0])
    assert torch.equal(cached[1], stock[2])
    assert torch.equal(beams, stock[1])
    assert torch.equal(again, stock[0])


def test_a_batch_encodes_each_image_once(model: PreTrainedModel, family: str) -> None:
    """Four prompts about two images, in another order; and with a method that watches the encoder, all."""
    singles = families.split(family, model, families.prompt(family, model, (1, 1)))
    rows = [singles[1], singles[0], singles[1], singles[1]]
    names = [name for name in ("pixel_values", "image_sizes", "image_grid_thw") if name in rows[0]]
    repeated, once = (
        {name: torch.cat([row[name] for row in chosen]) for name in names} for chosen in (rows, rows[:2])
    )
    tower: nn.Module = getattr(model.base_model, "visual", None) or model.base_model.vision_tower
    sizes: list[int] = []
    handle = tower.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(next(iter([*args, *kwargs.values()])).shape[0]), with_kwargs=True
    )
    core = model.base_model
    with torch.no_grad():
        stock = core.get_image_features(**repeated, return_dict=True)
        core.get_image_features(**once, return_dict=True)
        with cached_vision(model):
            cached = core.get_image_features(**repeated, return_dict=True)
    handle.remove()
    assert sizes == [sizes[0], sizes[1], sizes[1]]
    assert sizes[1] < sizes[0]
    assert type(cached) is type(stock)
    assert type(cached.pooler_output) is type(stock.pooler_output)
    for one, other in zip(cached.pooler_output, stock.pooler_output, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_method_that_watches_the_encoder_sees_all_images(model: PreTrainedModel, family: str) -> None:
    [single] = families.split(family, model, families.prompt(family, model, (1,)))
    batch = {name: torch.cat([value, value]) for name, value in single.items()}
    with attached("visionzip", model):
        stock = answer(model, batch)
        with cached_vision(model):
            assert torch.equal(answer(model, batch), stock)


def test_other_images_are_encoded_anew(model: PreTrainedModel, family: str, encoded: list[int]) -> None:
    inputs = families.prompt(family, model, (1,))
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["pixel_values"].view(-1)[0] += 1
    with torch.no_grad():
        stock = model(**changed).logits
    encoded.clear()
    with cached_vision(model), torch.no_grad():
        model(**inputs)
        assert torch.equal(model(**changed).logits, stock)
    assert len(encoded) == 2


def test_the_model_leaves_as_it_entered(model: PreTrainedModel, family: str, encoded: list[int]) -> None:
    inputs = families.prompt(family, model, (1,))
    before = dict(vars(model.base_model))
    with pytest.raises(KeyboardInterrupt), cached_vision(model), cached_vision(model):
        raise KeyboardInterrupt
    assert vars(model.base_model) == before
    with torch.no_grad():
        model(**inputs)
        encoded.clear()
        model(**inputs)
    assert len(encoded) == 1
