"""Caches with room hold what plain ones hold, and copy nothing in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tests.support import families
from tests.support.methods import attached
from vlmfix.engine.buffered_cache import BufferedLayer, give_room, take_room
from vlmfix.engine.caches import read_cache


def filled(tokens: int = 7) -> DynamicCache:
    generator = torch.Generator().manual_seed(0)
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*torch.randn(2, 3, 2, tokens, 4, generator=generator), layer)
    return cache


CHANGES: dict[str, Callable[[Any], Any]] = {
    "crop": lambda cache: cache.crop(-3),
    "beams": lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
    "repeat": lambda cache: cache.batch_repeat_interleave(2),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([0])),
    "reset": lambda cache: cache.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_equals_a_plain_cache(change: Callable[[Any], Any]) -> None:
    """Before and after whatever transformers does to a cache, also beyond the room."""
    plain, roomy = filled(), filled()
    assert give_room(roomy)
    generator = torch.Generator().manual_seed(1)
    rows = 3
    for step in range(200):
        if step in (2, 150):
            change(plain)
            change(roomy)
            held: Any = plain.layers[0].keys
            rows = 3 if held is None else len(held)
        keys, values = torch.randn(2, rows, 2, 1, 4, generator=generator)
        for layer in range(2):
            expected = plain.update(keys, values, layer)
            for own, other in zip(roomy.update(keys, values, layer), expected, strict=True):
                assert torch.equal(own, other)
        assert roomy.get_seq_length() == plain.get_seq_length()
    take_room(roomy)
    assert all(type(layer) is DynamicLayer for layer in roomy.layers)
    for layer in range(2):
        assert torch.equal(roomy.layers[layer].keys, plain.layers[layer].keys)


def test_what_it_gave_out_stays() -> None:
    """Until it is cropped."""
    cache = filled()
    give_room(cache)
    ones = torch.ones(3, 2, 1, 4)
    keys, _ = cache.update(ones, ones, 0)
    before = keys.clone()
    cache.update(2 * ones, 2 * ones, 0)
    assert torch.equal(keys, before)


def test_other_caches_get_no_room() -> None:
    cache = DynamicCache()
    assert not give_room(None)
    cache.layers = [BufferedLayer(), type("Other", (DynamicLayer,), {})()]
    assert not give_room(cache)


@pytest.mark.parametrize("name", ["var", "vcd", "fastv"])
def test_steps_copy_no_keys(name: str, llava: PreTrainedModel) -> None:
    """Neither of the prompts nor of branches; what comes back is a plain cache with the same keys."""
    inputs = families.prompt("llava", llava, (1, 2, 0))
    places: list[set[int]] = []

    def look(*_: Any) -> None:
        context = llava.get_decoder()._vlmfix_attachment.context  # type: ignore[operator, union-attr]
        caches = [context.engine.cache, *(branch.cache for branch in context.engine.branches)]
        held = [layer.keys for cache in caches if cache is not None for layer in cache.layers]
        if context.step > 1:
            places.append({each.data_ptr() for each in held})

    with attached(name, llava):
        hook = llava.register_forward_hook(look)
        output = llava.generate(
            **inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, return_dict_in_generate=True
        )
        hook.remove()
    assert len(places) == 6
    assert all(each == places[0] for each in places)
    cache = read_cache(output)
    assert all(type(layer) is DynamicLayer for layer in cache.layers)


def test_a_backward_pass_finds_what_was_held() -> None:
    gradients = []
    for has_room in (False, True):
        cache = filled()
        if has_room:
            give_room(cache)
        states = torch.full((3, 2, 1, 4), 2.0, requires_grad=True)
        total = torch.zeros(())
        for _ in range(3):
            keys, values = cache.update(states, states * states, 0)
            total = total + (keys * values).sum()
        total.backward()  # type: ignore[no-untyped-call]
        gradients.append(states.grad)
    assert torch.equal(*gradients)


def test_steps_in_and_out_of_inference_mode() -> None:
    plain, roomy = filled(), filled()
    give_room(roomy)
    for inference in (True, True, False, False, True):
        with torch.inference_mode(inference):
            ones = torch.ones(3, 2, 1, 4)
            for own, other in zip(roomy.update(ones, ones, 0), plain.update(ones, ones, 0), strict=True):
                assert torch.equal(own, other)
