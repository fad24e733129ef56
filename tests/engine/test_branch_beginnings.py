"""Branches that begin like their prompts or like each other: as read in full, of fewer tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.engine.test_prefix_cache import Reads, answer, assert_same, joined
from tests.support import families
from tests.support.branches import (
    GREEDY,
    Inputs,
    answered,
    check_branches,
    last_logits,
    text_ids,
    text_logits,
    with_ids,
)
from tests.support.methods import acting, built, in_turn, values, with_flash_attention
from tests.support.names import QUICK, UNLIKE
from vlmfix.engine import branch_beginnings
from vlmfix.engine.beginnings import WholeSequences
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.prefix_cache import shared_prefix
from vlmfix.engine.state import Branch
from vlmfix.engine.vision_cache import cached_vision, split_images
from vlmfix.methods.logits.base import Contrastive
from vlmfix.methods.logits.branch_prompts import unchanged
from vlmfix.methods.logits.vcd import add_noise

CONTRASTS = ("vcd", "icd", "ritual", "m3id", "vdd", "code", "avisc", "crops", "sid", "causalmm", "sira")
WORDS = [[7, 8, 9], [10, 11, 12, 13, 14, 15], [7, 8, 17], [18, 19, 20, 21, 22, 23, 24, 25]]
"""Of four questions, the second about another image than the others."""
INSTRUCTION = (7, 8, 9, 10, 11)


def questions(model: PreTrainedModel, family: str, images: int = 1) -> Inputs:
    """Of different lengths, about pictures that three of four prompts share."""
    singles = families.split(family, model, families.prompt(family, model, (images, images)))
    rows = [singles[number] for number in (0, 1, 0, 0)]
    return joined([row | {"words": torch.tensor([words])} for row, words in zip(rows, WORDS, strict=True)])


def shared(model: PreTrainedModel, method: vlmfix.Method, inputs: Inputs, **kwargs: Any) -> Tensor:
    """Logits of a batch whose prompts share what they have in common."""
    with method(model, families.PROCESSOR), cached_vision(model), shared_prefix(model):
        return answer(model, inputs, **kwargs)


def passes(
    model: PreTrainedModel, method: vlmfix.Method, inputs: Inputs, *others: vlmfix.Method
) -> list[int]:
    """Numbers of tokens, padding counted, in the passes that read prompts and then branches."""
    reads = Reads(model)
    with ExitStack() as stack:
        for each in (*others, method):
            stack.enter_context(each(model, families.PROCESSOR))
        stack.enter_context(cached_vision(model))
        stack.enter_context(shared_prefix(model))
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    reads.remove()
    return reads.tokens


@pytest.fixture
def read_in_full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, branches are read in full."""
    return lambda: monkeypatch.setattr(branch_beginnings, "_WORTH", 2)


@pytest.mark.promises
@pytest.mark.parametrize(("name", "family"), in_turn(CONTRASTS))
@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_as_if_read_in_full(
    model: PreTrainedModel, family: str, read_in_full: Callable[[], None], name: str, kwargs: dict[str, Any]
) -> None:
    inputs = questions(model, family)
    found = shared(model, acting(name), inputs, **kwargs)
    read_in_full()
    assert_same(found, shared(model, acting(name), inputs, **kwargs))


@pytest.mark.parametrize("family", GREEDY)
def test_prompts_without_padding(
    model: PreTrainedModel, family: str, read_in_full: Callable[[], None]
) -> None:
    """One prompt, and one that comes three times, whose branches are alike to the end."""
    single = families.split(family, model, families.prompt(family, model))[0]
    thrice = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in single.items()}
    found = [
        shared(model, acting(name), inputs) for name in ("m3id", "vcd", "icd") for inputs in (single, thrice)
    ]
    for alone, three in zip(found[::2], found[1::2], strict=True):
        assert_same(three, alone.expand_as(three))
    read_in_full()
    assert_same(found[0], shared(model, acting("m3id"), single))
    for other, name in zip(found[1::2], ("m3id", "vcd", "icd"), strict=True):
        assert_same(other, shared(model, acting(name), thrice))


@pytest.mark.parametrize("family", GREEDY)
@pytest.mark.parametrize("images", [1, 2])
def test_brute_force(model: PreTrainedModel, family: str, images: int) -> None:
    """Each branch of a batch that shares is what its prompt makes alone, without a method and a cache."""
    inputs = questions(model, family, images)
    copies = 2 if "image_grid_thw" in inputs else 1

    def noised(single: Inputs, new: list[int]) -> list[Tensor]:
        given = split_images({name: each for name, each in single.items() if name in families.IMAGE_INPUTS})
        pixels = [add_noise(image["pixel_values"], 500, 3, copies=copies) for image in given or []]
        return [last_logits(model, answered(single, new) | {"pixel_values": torch.cat(pixels)})]

    def disturbed(single: Inputs, new: list[int]) -> list[Tensor]:
        ids = answered(single, new)["input_ids"][0].tolist()
        place = ids.index(families.VISION_START)
        return [last_logits(model, with_ids(single, [*ids[:place], *INSTRUCTION, *ids[place:]]))]

    def text(single: Inputs, new: list[int]) -> list[Tensor]:
        return [text_logits(model, [*text_ids(model, single), *new])]

    with cached_vision(model), shared_prefix(model):
        check_branches(model, family, vlmfix.VCD(beta=0.001, seed=3), inputs, noised)
        icd = vlmfix.ICD(beta=0.001, instruction_ids=INSTRUCTION)
        check_branches(model, family, icd, inputs, disturbed)
        check_branches(model, family, vlmfix.M3ID(beta=0.001), inputs, text)


@pytest.mark.parametrize("family", UNLIKE)
def test_the_beginnings_of_branches_are_read_once(model: PreTrainedModel, family: str) -> None:
    inputs = questions(model, family)
    once, each, *branch = passes(model, acting("vcd"), inputs)
    assert sum(branch) <= once + each < inputs["input_ids"].numel()
    assert len(branch) == 2


@pytest.mark.parametrize("family", UNLIKE)
def test_the_beginning_of_a_prompt_is_not_read_again(model: PreTrainedModel, family: str) -> None:
    single = families.split(family, model, families.prompt(family, model))[0]
    own = single["input_ids"].numel()
    text = len(text_ids(model, single))
    before = single["input_ids"][0].tolist().index(families.VISION_START)
    assert passes(model, acting("m3id"), single) == [own, text - before]
    vhr = acting("vhr")  # edits before the image, which the branch must not see
    assert passes(model, acting("m3id"), single, vhr)[1:] == [text]


@pytest.mark.parametrize("name", ["sid", "causalmm"])
def test_branches_whose_tokens_see_otherwise_are_read_in_full(llava: PreTrainedModel, name: str) -> None:
    inputs = questions(llava, QUICK)
    assert passes(llava, acting(name), inputs)[2:] == [inputs["input_ids"].numel()]


class Marked(Contrastive):
    """The branch of each prompt has a number of its own in its second token."""

    alike = False
    keeps_prefix = True

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> list[Branch]:
        marked = inputs_embeds.clone()
        rows = torch.arange(len(marked))
        marked[rows, context.layout.real_tokens.int().argmax(dim=1) + 1, 0] += 1.0 + (
            0 if self.alike else rows
        )
        return [unchanged(context, marked, decoder_inputs, fused=self.fused)]

    def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
        return branches[0]


class MarkedAlike(Marked):
    alike = True


class SeesAhead(MarkedAlike):
    """All tokens of the branch see each other."""

    def branches(self, *args: Any) -> list[Branch]:
        [branch] = super().branches(*args)
        branch.seen = branch.real_tokens[:, None].expand(-1, branch.real_tokens.shape[1], -1)
        return [branch]


class HasMore(MarkedAlike):
    """The decoder is given something of each token that is not known."""

    def branches(self, *args: Any) -> list[Branch]:
        [branch] = super().branches(*args)
        branch.decoder_inputs = {"kinds": branch.real_tokens.int()}
        return [branch]


@pytest.mark.parametrize("kind", [SeesAhead, HasMore])
def test_what_does_not_come_apart_is_read_in_full(llava: PreTrainedModel, kind: type[Marked]) -> None:
    inputs = questions(llava, QUICK)
    assert passes(llava, kind(), inputs)[2:] == [inputs["input_ids"].numel()]


class Same(Marked):
    """The branch is the prompt."""

    def branches(
        self, context: DecodeContext, inputs_embeds: Tensor, decoder_inputs: Mapping[str, Any]
    ) -> list[Branch]:
        return [unchanged(context, inputs_embeds, decoder_inputs, fused=self.fused)]


@pytest.mark.parametrize("family", UNLIKE)
def test_what_a_method_edits_in_the_prompt_is_not_shared(model: PreTrainedModel, family: str) -> None:
    inputs = questions(model, family)
    stock = values(model, inputs, max_new_tokens=1)
    with acting("var")(model):
        edited = values(model, inputs, max_new_tokens=1)
    assert (edited - stock).abs().max() > 1e-3
    seen = []

    class Watched(Same):
        def combine(self, context: DecodeContext, logits: Tensor, branches: Sequence[Tensor]) -> Tensor:
            seen.append(branches[0])
            return logits

    _, each, branch = passes(model, Watched(beta=0), inputs, acting("var"))
    assert branch == each
    assert_same(seen[0][None], stock)


def test_other_embeddings_are_never_shared(llava: PreTrainedModel, read_in_full: Callable[[], None]) -> None:
    inputs = questions(llava, QUICK)
    whole = inputs["input_ids"].numel()
    assert passes(llava, Marked(), inputs)[2:] == [whole]
    found = shared(llava, Marked(beta=0), inputs)
    once, rest = passes(llava, MarkedAlike(), inputs)[2:]
    assert once + rest < whole
    alike = shared(llava, MarkedAlike(beta=0), inputs)
    read_in_full()
    assert_same(found, shared(llava, Marked(beta=0), inputs))
    assert_same(alike, shared(llava, MarkedAlike(beta=0), inputs))


@pytest.mark.parametrize("name", ["vcd", "m3id"])
def test_other_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = built(QUICK, attn_implementation="eager")
    inputs = questions(eager, QUICK)
    expected = shared(built(QUICK), acting(name), inputs)
    assert_same(shared(eager, acting(name), inputs), expected)
    assert_same(shared(with_flash_attention(QUICK, monkeypatch), acting(name), inputs), expected)


def test_common_lengths() -> None:
    real = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    embeddings = torch.tensor([[9, 1, 2, 3, 4], [1, 2, 3, 5, 6], [8, 8, 1, 2, 7], [1, 2, 7, 7, 7]])
    embeddings = embeddings[..., None].float()
    positions = (real.cumsum(dim=1) - 1).clamp_min(0)

    def sequences(positions: Tensor, **kwargs: Any) -> WholeSequences:
        return WholeSequences({"inputs_embeds": embeddings, **kwargs}, real, positions)

    own = sequences(positions)
    rows = torch.tensor([1, 1, 0, 2])
    assert own.common_lengths(own, rows).tolist() == [3, 5, 2, 3]
    nowhere = sequences(torch.zeros_like(positions))
    assert nowhere.common_lengths(nowhere, torch.tensor([0, 1, 3, 3])).tolist() == [4, 5, 3, 5]
    moved = positions.clone()
    moved[1, 2] += 1
    assert own.common_lengths(sequences(moved), rows).tolist() == [2, 2, 2, 3]
    axes = positions.expand(3, -1, -1).clone()
    axes[2, 0, 2] += 1
    assert sequences(axes).common_lengths(sequences(axes), rows).tolist() == [1, 5, 1, 3]
    places = torch.zeros_like(real)
    places[:, 2:4] = True
    features = torch.arange(8.0)[:, None]
    features[2:4] = features[:2]
    injected = sequences(positions, visual_pos_masks=places, deepstack_visual_embeds=[features])
    assert injected.common_lengths(own, torch.arange(4)).tolist() == [1, 2, 0, 2]
    assert injected.common_lengths(injected, torch.arange(4)).tolist() == [4, 5, 3, 5]
    assert injected.common_lengths(injected, torch.tensor([1, 1, 1, 1])).tolist() == [1, 5, 0, 2]
