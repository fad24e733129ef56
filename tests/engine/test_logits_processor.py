"""Methods as logits processors: the same tokens as attached ones, in every way of decoding."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, representatives, unlike
from tests.support.names import QUICK
from vlmfix.engine.vision_cache import split_images
from vlmfix.methods.logits.base import contrast, plausible
from vlmfix.methods.logits.vcd import add_noise
from vlmfix.methods.multi_pass import MultiPassMethod

LOGITS = [
    name
    for name, cls in vlmfix.list_methods().items()
    if not issubclass(cls, MultiPassMethod) and acting(name).owns_logits
]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "beams of each": {"num_beams": 4, "num_return_sequences": 3},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
}


def tokens(model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    torch.manual_seed(3)
    return model.generate(**inputs, max_new_tokens=4, **{"do_sample": False, **kwargs})


def vcd(model: PreTrainedModel, inputs: dict[str, Tensor]) -> LogitsProcessorList:
    return vlmfix.VCD(beta=0.001).logits_processor(model, inputs)


IN_FULL = {(name, unlike(number, name)) for number, name in enumerate(representatives(LOGITS))}
"""Methods of each kind are compared in every way of decoding on one family; all methods on the other family
with several beams of each, which need most."""


@pytest.mark.parametrize(
    ("name", "family"),
    sorted(IN_FULL | {(name, unlike(number + 1, name)) for number, name in enumerate(LOGITS)}),
)
def test_same_tokens_as_attached(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    before = families.fingerprint(model)
    for way in WAYS if (name, family) in IN_FULL else ("beams of each",):
        kwargs = WAYS[way]
        with attached(name, model):
            expected = tokens(model, inputs, **kwargs)
        twin = acting(name).logits_processor(model, inputs, families.PROCESSOR)
        assert torch.equal(tokens(model, inputs, logits_processor=twin, **kwargs), expected), way
    assert families.fingerprint(model) == before


class Naive(LogitsProcessor):
    """VCD by a pass over every whole sequence with a noised image, one after the other, without a cache."""

    def __init__(self, family: str, model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
        self.model = copy.deepcopy(model)  # Qwen-VL remembers the offset of its last prompt
        self.prompts = families.split(family, model, inputs)
        names = ("pixel_values", "image_sizes", "image_grid_thw")
        copies = 2 if family.startswith("qwen") else 1
        for prompt in self.prompts:
            images = split_images({name: prompt.get(name) for name in names})
            assert images is not None
            noised = [add_noise(image["pixel_values"], 500, 0, copies=copies) for image in images]
            prompt["pixel_values"] = torch.cat(noised)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = []
        for index, row in enumerate(input_ids):
            prompt = self.prompts[index * len(self.prompts) // len(input_ids)]
            new = row[len(row) - (input_ids.shape[1] - self.width(input_ids)) :][None]
            whole = {**prompt, "input_ids": torch.cat([prompt["input_ids"], new], dim=1)}
            whole["attention_mask"] = torch.ones_like(whole["input_ids"])
            if "mm_token_type_ids" in prompt:
                whole["mm_token_type_ids"] = torch.cat(
                    [prompt["mm_token_type_ids"], torch.zeros_like(new).int()], dim=1
                )
            with torch.no_grad():
                rows.append(self.model(**whole, use_cache=False).logits[0, -1])
        mixed = contrast(scores, torch.stack(rows).float(), 1.0)
        return torch.where(plausible(scores, 0.001), mixed, -torch.inf).log_softmax(dim=-1)

    def width(self, input_ids: Tensor) -> int:
        return max(prompt["input_ids"].shape[1] for prompt in self.prompts)


@pytest.mark.parametrize(
    ("way", "family"),
    [
        *product(["greedy", "beams", "beams of each"], [QUICK]),
        *(("beams of each", family) for family in families.FAMILIES if family != QUICK),
    ],
)
def test_equals_brute_force(way: str, model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 2))
    naive = LogitsProcessorList([Naive(family, model, inputs)])
    expected = tokens(model, inputs, logits_processor=naive, **WAYS[way])
    assert torch.equal(tokens(model, inputs, logits_processor=vcd(model, inputs), **WAYS[way]), expected)


def test_a_single_prompt_with_beams(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (2,))
    with vlmfix.VCD(beta=0.001)(model):
        expected = tokens(model, inputs, num_beams=3)
    assert torch.equal(tokens(model, inputs, num_beams=3, logits_processor=vcd(model, inputs)), expected)


def test_beside_attached_methods(model: PreTrainedModel, family: str) -> None:
    """Edits of attention change the scores that it gets, not what it compares them with."""
    inputs = families.prompt(family, model, (1, 2))
    with attached("var", model), attached("m3id", model):
        expected = tokens(model, inputs, num_beams=2)
    with attached("var", model):
        method = acting("m3id")
        twin = method.logits_processor(model, inputs)
        assert torch.equal(tokens(model, inputs, num_beams=2, logits_processor=twin), expected)
        assert torch.equal(tokens(model, inputs, num_beams=2, logits_processor=twin), expected)


def test_a_pass_that_fails_leaves_the_block_as_it_was(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    before = families.fingerprint(llava)
    passes: list[int] = []

    def fail(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 2:  # the first is that of `generate`
            raise ZeroDivisionError

    with attached("var", llava):
        expected = tokens(llava, inputs)
        handle = llava.get_decoder().layers[2].register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            tokens(llava, inputs, logits_processor=vcd(llava, inputs))
        handle.remove()
        assert torch.equal(tokens(llava, inputs), expected)
    assert families.fingerprint(llava) == before


def test_comes_behind_the_processors_of_generate(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    banned = tokens(llava, inputs, logits_processor=vcd(llava, inputs))[:, -4:]
    kwargs = {"bad_words_ids": [[token] for token in set(banned.flatten().tolist())]}
    got = tokens(llava, inputs, logits_processor=vcd(llava, inputs), **kwargs)[:, -4:]
    assert not set(got.flatten().tolist()) & set(banned.flatten().tolist())


def test_serves_a_call_again(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    twin = vcd(llava, inputs)
    once = tokens(llava, inputs, logits_processor=twin, num_beams=3)
    tokens(llava, inputs, logits_processor=twin)
    assert torch.equal(tokens(llava, inputs, logits_processor=twin, num_beams=3), once)


def test_other_inputs_are_refused_at_once(llava: PreTrainedModel) -> None:
    inputs, others = (families.prompt("llava", llava, counts) for counts in ((1, 2), (2, 1)))
    for made_for, used_with in ((inputs, others), (others, inputs)):
        with pytest.raises(ValueError, match="made for other inputs"):
            tokens(llava, used_with, logits_processor=vcd(llava, made_for))
    fewer = {name: value[:1] for name, value in inputs.items() if name != "pixel_values"}
    fewer["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match="made for other inputs"):
        tokens(llava, fewer, logits_processor=vcd(llava, inputs))


def test_a_missed_token_is_refused(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    (twin,) = vcd(llava, inputs)
    ids = inputs["input_ids"]
    longer = torch.cat([ids, torch.tensor([[5, 6]])], dim=1)

    @torch.no_grad()
    def see(sequence: Tensor) -> None:
        whole = {**inputs, "input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
        twin(sequence, llava(**whole).logits[:, -1])

    for sequence in (longer[:, :-1], longer):
        with pytest.raises(ValueError, match="did not see every token"):
            see(sequence)
    see(ids)
    with pytest.raises(ValueError, match="did not see every token"):
        see(longer)
    see(longer[:, :-1])
    other = longer.clone()
    other[0, -2] = 7
    with pytest.raises(ValueError, match="did not see every token"):
        see(other)
    see(longer)


BANS: dict[str, dict[str, Any]] = {
    "the end": {"min_new_tokens": 6, "eos_token_id": list(range(3, 60))},
    "n-grams": {"no_repeat_ngram_size": 1},
    "words": {"bad_words_ids": [[token] for token in range(3, 100)]},
    "a function": {"prefix_allowed_tokens_fn": lambda row, ids: [20, 21, 22, 23]},
    "tokens": {"suppress_tokens": list(range(0, 110))},
    "the first": {"begin_suppress_tokens": list(range(0, 110))},
}
"""Processors of `generate` that leave no token, or few, of those that a method finds plausible."""


TURNS = [(name, list(BANS)[index % 6]) for index, name in enumerate(LOGITS)]


@pytest.mark.parametrize(("name", "ban"), TURNS)
def test_bans_fall_back_on_the_best_token_that_remains(name: str, ban: str, llava: PreTrainedModel) -> None:
    """As a block and as a processor the same, in every way of decoding; no row is left without a token."""
    inputs = families.prompt("llava", llava, (1, 0))
    for way, kwargs in WAYS.items():
        if way in ("no cache", "beams of each"):
            continue
        kwargs = {**kwargs, **BANS[ban], "pad_token_id": 0}
        got = []
        for processor in (False, True):
            if processor:
                twin = acting(name).logits_processor(llava, inputs, families.PROCESSOR)
                got.append(tokens(llava, inputs, logits_processor=twin, **kwargs))
            else:
                with attached(name, llava):
                    got.append(tokens(llava, inputs, **kwargs))
        assert torch.equal(*got), way
        new = got[0][:, inputs["input_ids"].shape[1] :]
        if ban in ("words", "tokens", "a function"):
            allowed = set(range(100, 120)) | {0, 1, 2} if ban == "words" else set(range(110, 120))
            allowed = {20, 21, 22, 23} if ban == "a function" else allowed
            assert set(new.flatten().tolist()) <= allowed
        if ban == "the end":
            assert not bool(torch.isin(new, torch.arange(3, 60)).any())
        if ban == "n-grams":
            assert all(len(set(row)) == len(row) for row in new.tolist())


def test_the_best_remaining_token_is_the_models_own(llava: PreTrainedModel) -> None:
    """All plausible tokens banned: the model's order decides, and sampling does not crash."""
    inputs = families.prompt("llava", llava, (1,))
    with torch.no_grad():
        logits = llava(**inputs).logits[0, -1]
    order = logits.argsort(descending=True)
    kept = int(plausible(logits[None], 0.9).sum())
    ban = order[:kept].tolist()
    with vlmfix.VCD(beta=0.9)(llava):
        for kwargs in ({}, {"do_sample": True, "top_k": 1}, {"num_beams": 3}):
            output = llava.generate(**inputs, max_new_tokens=1, suppress_tokens=ban, **kwargs)
            assert output[0, -1] == order[kept]


def test_other_pictures_are_refused(model: PreTrainedModel, family: str) -> None:
    """The words are the same; only the scores tell."""
    inputs, other = (families.prompt(family, model, (1, 1), seed=seed) for seed in (0, 1))
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for kwargs in ({}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="not those of its model for the inputs"):
            tokens(model, {**other, **words}, logits_processor=vcd(model, inputs), **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{"repetition_penalty": 1.2}, {"sequence_bias": {(9,): 3.0}}, {"encoder_repetition_penalty": 1.3}],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_processors_that_change_scores(kwargs: dict[str, Any], llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    for beams in (1, 3):
        with pytest.raises(vlmfix.UnsupportedError, match=r"changed the scores of \d+ tokens"):
            tokens(llava, inputs, logits_processor=vcd(llava, inputs), num_beams=beams, **kwargs)
    assert "generate" not in vars(llava)


def test_a_processor_after_it_acts_as_in_the_block(llava: PreTrainedModel) -> None:
    """The way that the refusal names, under all ways of decoding."""
    inputs = families.prompt("llava", llava, (1, 2))
    for kwargs in WAYS.values():
        with vlmfix.VCD(beta=0.001)(llava):
            expected = tokens(llava, inputs, repetition_penalty=1.5, **kwargs)
        both = LogitsProcessorList([*vcd(llava, inputs), RepetitionPenaltyLogitsProcessor(1.5)])
        assert torch.equal(tokens(llava, inputs, logits_processor=both, **kwargs), expected)


def test_what_the_block_refuses(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    two = LogitsProcessorList([*vcd(llava, inputs), *acting("m3id").logits_processor(llava, inputs)])
    with pytest.raises(ValueError, match="a second contrast"):
        tokens(llava, inputs, logits_processor=two)
    with (
        attached("m3id", llava),
        pytest.raises(vlmfix.UnsupportedError, match="M3ID defines the logits of this model already"),
    ):
        tokens(llava, inputs, logits_processor=vcd(llava, inputs))
    with pytest.raises(ValueError, match="guidance_scale"):
        tokens(llava, inputs, logits_processor=vcd(llava, inputs), guidance_scale=1.5)


def test_the_mix_is_not_rounded(llava: PreTrainedModel) -> None:
    """What a model in bfloat16 says comes out in float32, as `generate` reads it."""
    model = copy.deepcopy(llava).bfloat16()
    inputs = families.prompt("llava", model, (1, 2))
    kwargs = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 2, "do_sample": False}
    with vlmfix.VCD(beta=0.5)(model):
        logits = model.generate(**inputs, **kwargs).logits[0]
    assert not torch.equal(logits, logits.bfloat16().float())


def test_what_no_processor_can_do(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    with pytest.raises(vlmfix.UnsupportedError, match="VHR acts inside the model"):
        vlmfix.VHR().logits_processor(llava, inputs)
    with pytest.raises(ValueError, match="no input_ids"):
        vlmfix.VCD().logits_processor(llava, {"inputs_embeds": torch.zeros(1, 2, 3)})


def test_a_model_whose_layers_do_not_fit_is_refused(llava: PreTrainedModel, monkeypatch: Any) -> None:
    inputs = families.prompt("llava", llava, (1,))
    monkeypatch.setattr(llava.get_decoder().layers[1], "residual_multiplier", 0.5, raising=False)
    with pytest.raises(vlmfix.UnsupportedError, match="is not a plain layer"):
        vlmfix.ONLY().logits_processor(llava, inputs)


def test_strength_zero_is_no_processor(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    assert len(vlmfix.VCD(alpha=0, beta=0).logits_processor(llava, inputs)) == 0


def test_an_error_leaves_nothing_behind(llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = families.prompt("llava", llava, (1,))
    before = families.fingerprint(llava)
    twin = vcd(llava, inputs)
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokens(llava, inputs, num_beams=2, logits_processor=twin)
    assert families.fingerprint(llava) == before
