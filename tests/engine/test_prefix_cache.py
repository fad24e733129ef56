"""Prompts about one image, with their common beginning read once, answer as they do without."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, cases, representatives, unlike, values
from tests.support.names import QUICK
from vlmfix.engine.kl import Divergence
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.vision_cache import cached_vision

SHARING = [name for name, cls in vlmfix.list_methods().items() if cls.keeps_prefix]


@pytest.fixture
def inputs(model: PreTrainedModel, family: str) -> dict[str, torch.Tensor]:
    """Three questions of different lengths about the first image, and one about the second, between them."""
    two = families.prompt(family, model, (1, 1))
    singles = families.split(family, model, two)
    words = [[7, 8, 9], [10, 11, 12, 13, 14, 15], [16, 17], [18, 19, 20, 21, 22, 23, 24, 25]]
    rows = [singles[image] | {"words": torch.tensor([words[row]])} for row, image in enumerate((0, 1, 0, 0))]
    return joined(rows)


def joined(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One left-padded batch of single prompts, each followed by its words."""
    ids = [torch.cat([row["input_ids"], row.pop("words")], dim=1)[0].tolist() for row in rows]
    length = max(map(len, ids))
    batch = {
        name: torch.cat([row[name] for row in rows])
        for name in ("pixel_values", "image_sizes", "image_grid_thw")
        if name in rows[0]
    }
    batch["input_ids"] = torch.tensor([[0] * (length - len(each)) + each for each in ids])
    batch["attention_mask"] = torch.tensor([[0] * (length - len(each)) + [1] * len(each) for each in ids])
    if "mm_token_type_ids" in rows[0]:
        batch["mm_token_type_ids"] = (batch["input_ids"] == families.IMAGE_TOKEN).int()
    return batch


class Reads:
    """Numbers of tokens that the decoder reads in each pass through its first layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.tokens: list[int] = []
        self._handle = (
            model.get_decoder().layers[0].self_attn.register_forward_pre_hook(self._note, with_kwargs=True)
        )

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens.append(kwargs["hidden_states"].shape[:2].numel())

    def remove(self) -> None:
        self._handle.remove()


@pytest.fixture
def reads(model: PreTrainedModel) -> Any:
    reads = Reads(model)
    yield reads
    reads.remove()


def answer(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    return values(model, inputs, max_new_tokens=6, **kwargs)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.promises
@pytest.mark.parametrize(
    ("name", "family"), [("greedy", QUICK), *cases(representatives(SHARING), in_turn=True)]
)
def test_sharing_changes_nothing(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], reads: Reads, name: str
) -> None:
    with nullcontext() if name == "greedy" else attached(name, model):
        stock = answer(model, inputs)
        in_full = sum(reads.tokens)
        reads.tokens.clear()
        with cached_vision(model), shared_prefix(model):
            assert_same(answer(model, inputs), stock)
    assert sum(reads.tokens) < in_full - 2 * 4  # two prompts of four need no second reading of their image


def counted(edit_stats: vlmfix.EditStats) -> vlmfix.EditStats:
    """Without what is measured, which sharing changes by rounding."""
    return dataclasses.replace(edit_stats, size=None, details={}, **Divergence().figures)


@pytest.mark.parametrize(
    ("name", "family"), [(name, unlike(number, name)) for number, name in enumerate(SHARING)]
)
def test_activity_is_the_same(model: PreTrainedModel, inputs: dict[str, torch.Tensor], name: str) -> None:
    activities = []
    for sharing in (False, True):
        method = acting(name)
        with ExitStack() as stack:
            stack.enter_context(method(model, families.PROCESSOR))
            if sharing:
                stack.enter_context(shared_prefix(model))
            answer(model, inputs)
        activities.append((method.edit_stats(), method.latest_edit_stats()))
    (edit_stats, rows), (shared, rows_shared) = activities
    assert len(rows) == len(rows_shared)
    for row, row_shared in zip(rows, rows_shared, strict=True):
        assert row[:-1] == row_shared[:-1]
        assert row.divergence == pytest.approx(row_shared.divergence, rel=1e-3, abs=1e-6)
    assert counted(edit_stats) == counted(shared)
    assert (edit_stats.size or 0) == pytest.approx(shared.size or 0, rel=1e-4)
    assert edit_stats.steps == sum(row.steps for row in rows)
    assert edit_stats.site_share == sum(row.edited for row in rows) / sum(row.eligible for row in rows)


@pytest.mark.parametrize("kwargs", [{"num_beams": 3}, {"use_cache": False}])
def test_other_ways_of_decoding(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], kwargs: dict[str, Any]
) -> None:
    stock = answer(model, inputs, **kwargs)
    with shared_prefix(model):
        assert_same(answer(model, inputs, **kwargs), stock)


def test_methods_together(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with attached("var", model), attached("gift", model):
        stock = answer(model, inputs)
        with shared_prefix(model):
            assert_same(answer(model, inputs), stock)


@pytest.mark.parametrize("name", ["vhr", "fastv"])
def test_methods_that_act_in_front_read_in_full(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], reads: Reads, name: str
) -> None:
    with attached(name, model):
        stock, in_full = answer(model, inputs), list(reads.tokens)
        reads.tokens.clear()
        with shared_prefix(model):
            assert_same(answer(model, inputs), stock)
    assert reads.tokens == in_full


def test_prompts_without_anything_in_common(model: PreTrainedModel, family: str, reads: Reads) -> None:
    """Different images, and text alone."""
    for images in ((1, 2), (0, 0)):
        inputs = families.prompt(family, model, images)
        stock, in_full = answer(model, inputs), list(reads.tokens)
        reads.tokens.clear()
        with shared_prefix(model):
            assert_same(answer(model, inputs), stock)
        assert reads.tokens == in_full
        reads.tokens.clear()


def test_a_plain_pass_returns_all_logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad(), shared_prefix(model):
        assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_the_model_leaves_as_it_entered(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    decoder = model.get_decoder()
    before = dict(vars(decoder))
    with pytest.raises(KeyboardInterrupt), shared_prefix(model):
        raise KeyboardInterrupt
    assert vars(decoder) == before
    assert not model._forward_pre_hooks


def test_eager_attention(inputs: dict[str, torch.Tensor], family: str) -> None:
    model = families.build(family, attn_implementation="eager")
    with attached("var", model):
        stock = answer(model, inputs)
        with shared_prefix(model):
            assert_same(answer(model, inputs), stock)
