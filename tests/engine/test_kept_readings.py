"""What a model read of pictures, kept for passes of other methods, which answer as they do without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.engine.test_prefix_cache import SHARING, Reads, assert_same, joined
from tests.support import families
from tests.support.methods import attached, cases, representatives, values
from tests.support.names import QUICK
from vlmfix.engine.kept_beginnings import ReadBeginnings
from vlmfix.engine.kept_readings import KeptReadings, keep_readings, kept_readings
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.vision_cache import cached_vision

LARGE = 2**40


@pytest.fixture
def inputs(model: PreTrainedModel, family: str) -> dict[str, torch.Tensor]:
    """Questions of different lengths about two images, which have nothing in common."""
    singles = families.split(family, model, families.prompt(family, model, (1, 1)))
    words = [[7, 8, 9], [10, 11, 12, 13, 14, 15]]
    return joined([each | {"words": torch.tensor([words[row]])} for row, each in enumerate(singles)])


@pytest.fixture
def reads(model: PreTrainedModel) -> Iterator[Reads]:
    reads = Reads(model)
    yield reads
    reads.remove()


@pytest.fixture
def encodings(model: PreTrainedModel) -> Iterator[list[int]]:
    """Numbers of images, or patches, that the vision encoder gets in each pass."""
    seen: list[int] = []
    core: Any = model.base_model
    tower = core.vision_tower if hasattr(core, "vision_tower") else core.visual

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(len(args[0] if args else next(iter(kwargs.values()))))

    handle = tower.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def answer(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """As `answer_batch` does."""
    with cached_vision(model), shared_prefix(model):
        return values(model, inputs, max_new_tokens=4)


@pytest.mark.parametrize(
    ("name", "family"), [("greedy", QUICK), *cases(representatives(SHARING), in_turn=True)]
)
def test_what_plain_decoding_read_serves_methods(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], reads: Reads, name: str
) -> None:
    def under() -> torch.Tensor:
        with nullcontext() if name == "greedy" else attached(name, model):
            return answer(model, inputs)

    alone = under()
    in_full = sum(reads.tokens)
    with keep_readings(model, LARGE) as kept:
        answer(model, inputs)
        reads.tokens.clear()
        assert_same(under(), alone)
        sees = name != "greedy" and vlmfix.make_method(name).sees_layers
        if sees:  # plain decoding kept no hidden states
            assert kept.spared_tokens == 0
            reads.tokens.clear()
            assert_same(under(), alone)
    spared = int((inputs["input_ids"] == families.IMAGE_TOKEN).sum()) - len(inputs["input_ids"])
    assert kept.spared_tokens >= spared
    assert sum(reads.tokens) <= in_full - spared


@pytest.mark.parametrize("family", [QUICK])
def test_nothing_is_kept_after_the_block(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with keep_readings(model, LARGE) as kept:
        assert kept_readings(model) is kept
        answer(model, inputs)
        assert kept.size > 0
    assert kept_readings(model) is None
    assert kept.size == 0


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_changed_pixel_is_read_anew(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], encodings: list[int]
) -> None:
    pixels = inputs["pixel_values"].clone()
    pixels.view(-1)[-1] += 1
    changed = {**inputs, "pixel_values": pixels}
    alone = answer(model, changed)
    with keep_readings(model, LARGE) as kept:
        encodings.clear()
        answer(model, inputs)
        both = sum(encodings)
        encodings.clear()
        assert_same(answer(model, changed), alone)
        assert 0 < sum(encodings) < both  # the first image is as it was, and the second one is not
        spared = kept.spared_tokens
        assert 0 < spared < int((inputs["input_ids"] == families.IMAGE_TOKEN).sum()) / 2 + 16
        encodings.clear()
        assert_same(answer(model, changed), alone)
        assert encodings == []
        assert kept.spared_tokens > 2 * spared


@pytest.mark.parametrize("family", [QUICK])
def test_a_beginning_of_one_pass_serves_prompts_of_another_length(
    model: PreTrainedModel, family: str
) -> None:
    singles = families.split(family, model, families.prompt(family, model, (1, 1)))
    words = [[7, 8, 9], [10, 11, 12, 13, 14, 15], [16], [17, 18]]
    batches = [
        joined([singles[image] | {"words": torch.tensor([words[row]])} for row, image in enumerate(images)])
        for images in ((0,), (1, 0, 1), (0, 0, 1, 1))
    ]
    alone = [answer(model, batch) for batch in batches]
    with keep_readings(model, LARGE):
        for _ in range(2):
            for batch, expected in zip(batches, alone, strict=True):
                assert_same(answer(model, batch), expected)


@pytest.mark.parametrize("family", [QUICK])
def test_what_does_not_fit_is_read_again(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], reads: Reads
) -> None:
    alone = answer(model, inputs)
    in_full = sum(reads.tokens)
    with keep_readings(model, LARGE) as kept:
        answer(model, inputs)
        whole = kept.size
    spared = []
    for limit in (0, whole * 3 // 4, whole):
        with keep_readings(model, limit) as kept:
            assert_same(answer(model, inputs), alone)
            assert kept.size <= limit
            assert_same(answer(model, inputs), alone)
            spared.append(kept.spared_tokens)
    assert spared[0] == 0 < spared[1] < spared[2]
    with keep_readings(model, 0):  # not even in two passes
        reads.tokens.clear()
        answer(model, inputs)
    assert sum(reads.tokens) == in_full


@pytest.mark.parametrize("family", [QUICK])
def test_where_memory_ran_out_nothing_is_kept_any_more(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> None:
    with keep_readings(model, LARGE) as kept:
        assert not kept.give_up()
    with keep_readings(model, LARGE) as kept:
        answer(model, inputs)
        assert kept.give_up()
        assert kept.size == 0
        answer(model, inputs)
        assert (kept.size, kept.spared_tokens, kept.give_up()) == (0, 0, False)


@pytest.mark.parametrize(("name", "family"), [("paint", QUICK)])
def test_methods_that_read_the_encoder_take_nothing(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], encodings: list[int], name: str
) -> None:
    with attached(name, model):
        alone = answer(model, inputs)
    with keep_readings(model, LARGE):
        answer(model, inputs)
        encodings.clear()
        with attached(name, model):
            assert_same(answer(model, inputs), alone)
        assert sum(encodings) == len(inputs["pixel_values"])


def test_seconds_are_those_of_what_was_taken() -> None:
    kept = KeptReadings(torch.device("cpu"), 10_000)
    told_by = [[torch.full((4, 2), float(row))] for row in range(2)]
    layer = torch.zeros(2, 1, 4, 2)
    kept.keep_beginnings(told_by, ReadBeginnings.of([_Layer(layer, layer)], [], 1.5))
    assert kept.beginnings([[torch.full((4, 2), 2.0)]], with_states=False) == [None]
    assert (kept.spared_seconds, kept.spared_tokens) == (0.0, 0)
    found = kept.beginnings([told_by[1], told_by[0]], with_states=False)
    assert [each.row for each in found if each] == [1, 0]
    assert (kept.spared_seconds, kept.spared_tokens) == (3.0, 8)
    # Two layers' worth of float32, and the embeddings that tell beginnings apart.
    assert kept.size == 2 * (2 * 4 * 2 * 4 + 4 * 2 * 4)


class _Layer:
    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
