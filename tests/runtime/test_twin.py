"""Methods as logits processors: the same tokens as attached ones, in every way of decoding."""

from __future__ import annotations

import copy
from typing import Any

import families
import pytest
import torch
from conftest import acting, attached, pairs
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel

import vlmfix
from vlmfix.methods.contrast import contrast, plausible
from vlmfix.methods.vcd import add_noise
from vlmfix.runtime.vision import split_images

LOGITS = [name for name, cls in vlmfix.methods().items() if not cls.asks and acting(name).owns_logits]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 4},
    "beams of each": {"num_beams": 4, "num_return_sequences": 3},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
}


def tokens(model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    torch.manual_seed(3)
    return model.generate(**inputs, max_new_tokens=6, **{"do_sample": False, **kwargs})


def vcd(model: PreTrainedModel, inputs: dict[str, Tensor]) -> LogitsProcessorList:
    return vlmfix.VCD(beta=0.001).logits_processor(model, inputs)


@pytest.mark.parametrize(("name", "family"), pairs(LOGITS, in_turn=True))
def test_same_tokens_as_attached(name: str, family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    before = families.fingerprint(model)
    for way, kwargs in WAYS.items():
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


@pytest.mark.parametrize("way", ["greedy", "beams", "beams of each"])
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


def test_comes_behind_the_processors_of_generate(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    banned = tokens(llava, inputs, logits_processor=vcd(llava, inputs))[:, -6:]
    kwargs = {"bad_words_ids": [[token] for token in set(banned.flatten().tolist())]}
    got = tokens(llava, inputs, logits_processor=vcd(llava, inputs), **kwargs)[:, -6:]
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
    ids, scores = inputs["input_ids"], torch.zeros(1, families.VOCABULARY)
    longer = torch.cat([ids, torch.tensor([[5, 6]])], dim=1)
    for sequence in (longer[:, :-1], longer):
        with pytest.raises(ValueError, match="did not see every token"):
            twin(sequence, scores)
    twin(ids, scores)
    with pytest.raises(ValueError, match="did not see every token"):
        twin(longer, scores)
    twin(longer[:, :-1], scores)
    other = longer.clone()
    other[0, -2] = 7
    with pytest.raises(ValueError, match="did not see every token"):
        twin(other, scores)
    twin(longer, scores)


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
