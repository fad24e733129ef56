"""The passes of the decoder: companions, tokens that leave, the last row again, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import attached
from vlmfix.engine.capabilities import AddsAuxiliaryPrompt
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.engine.state import AuxiliaryPrompt


def mask(text: str) -> Tensor:
    """One sample a word; `1` is True."""
    return torch.tensor([[letter == "1" for letter in word] for word in text.split()])


def test_kept_tokens_in_their_order_behind_padding() -> None:
    layout = PromptLayout(mask("0110110 0001100"), mask("1111111 0011111"))
    narrower, index = layout.select(mask("1010011 1110111"))
    assert index.tolist() == [[0, 2, 5, 6], [2, 4, 5, 6]]
    assert torch.equal(narrower.real_tokens, mask("1111 1111"))
    assert torch.equal(narrower.image_tokens, mask("0110 0100"))
    assert torch.equal(narrower.after_last_image, mask("0001 0011"))
    again, index = narrower.select(mask("1001 1111"))
    assert again.positions is not None
    assert again.positions.tolist() == [[2, 5, 0, 6], [2, 4, 5, 6]]
    assert torch.equal(again.real_tokens, mask("0011 1111"))
    assert torch.equal(again.gather(mask("1000001 0000110")), mask("0011 0110"))


def test_masks_of_padded_layouts() -> None:
    layout = PromptLayout(mask("000 000"), mask("111 011"))
    cpu = torch.device("cpu")
    seen = layout.attention_mask(3, 3, cpu)
    assert seen is not None
    assert torch.equal(seen[1, 0], mask("000 010 011"))
    keys = layout.key_mask(5, cpu)
    assert keys is not None
    assert torch.equal(keys, mask("11111 01111"))
    unpadded = PromptLayout(mask("000"), mask("111"))
    assert unpadded.attention_mask(3, 3, cpu) is None
    assert unpadded.key_mask(4, cpu) is None


def test_several_companions_stand_behind_the_prompt_in_order() -> None:
    context = DecodeContext(PromptLayout(mask("0110"), mask("1111")), num_layers=1)
    context.auxiliary_prompts = {
        "first": AuxiliaryPrompt(torch.zeros(1, 3, 2), mask("011")),
        "second": AuxiliaryPrompt(torch.zeros(1, 2, 2), mask("11")),
    }
    assert context.auxiliary_length == 5
    assert context.auxiliary_tokens("first", 9) == slice(4, 7)
    assert context.auxiliary_tokens("second", 9) == slice(7, 9)
    with pytest.raises(KeyError):
        context.auxiliary_tokens("third", 9)


@dataclass(frozen=True, kw_only=True)
class Copy(vlmfix.Method, AddsAuxiliaryPrompt):
    """Reads a copy of the prompt as a companion, and notes the last head outputs of both."""

    def auxiliary_prompt(self, context: DecodeContext, inputs_embeds: Tensor) -> AuxiliaryPrompt | None:
        return AuxiliaryPrompt(inputs_embeds, context.layout.real_tokens)

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        if context.auxiliary_prompts:
            prompt = heads[:, : context.layout.length]
            copy = heads[:, context.auxiliary_tokens(self, heads.shape[1])]
            real = context.layout.real_tokens
            torch.testing.assert_close(prompt[real], copy[real], atol=1e-5, rtol=1e-5)
            context.state[self] = True
        return heads

    def end(self, context: DecodeContext) -> None:
        assert context.state[self]


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_a_companion_neither_sees_nor_is_seen(family: str, models: dict[str, PreTrainedModel]) -> None:
    """A copy of a text is computed as the text itself; left padding included."""
    model = models[family]
    inputs = families.prompt(family, model, (1, 2, 0))
    stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with Copy()(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), stock)


@pytest.mark.parametrize("name", ["gift", "vhr", "adaptinfer"])
def test_hidden_states_are_those_of_the_edited_pass(name: str, llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    with attached(name, llava), torch.no_grad():
        output = llava(**inputs, output_hidden_states=True)
        states = output.hidden_states[-1][:, -1]
    torch.testing.assert_close(llava.lm_head(states), output.logits[:, -1], atol=1e-4, rtol=1e-4)


def test_injection_behind_the_last_layer_is_refused() -> None:
    model = families.build("qwen3_vl")
    model.config.text_config.num_hidden_layers = 2
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:2]
    inputs = families.prompt("qwen3_vl", model)
    with (
        vlmfix.RandomTokens(kept_tokens=2)(model),
        pytest.raises(vlmfix.UnsupportedError, match="after its last layer"),
    ):
        model.generate(**inputs, max_new_tokens=1)
