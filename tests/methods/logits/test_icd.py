"""ICD: where the instruction goes, and the branch against the prompt that it makes, read alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.chat_template_utils import render_jinja_template

import vlmfix
from tests.support import families
from tests.support.branches import (
    Inputs,
    answered,
    check_branches,
    images_of,
    in_every_way,
    last_logits,
    with_ids,
)
from vlmfix.evaluation.datasets import demo_scene, render
from vlmfix.inference.chat import SystemSlot, prepare
from vlmfix.models.embedded import EMBEDDED

INSTRUCTION = (7, 8, 9, 10, 11)
QUESTION = "Is there a red dog?"


@in_every_way
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    """Without a template, before the first image and its begin; the model counts positions itself."""
    inputs = families.prompt(family, model, images_of(family, way))

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        ids = answered(single, new)["input_ids"][0].tolist()
        place = ids.index(families.VISION_START)
        return [last_logits(model, with_ids(single, [*ids[:place], *INSTRUCTION, *ids[place:]]))]

    method = vlmfix.ICD(beta=0.001, instruction_ids=INSTRUCTION, fused=fused)
    check_branches(model, family, method, inputs, alone, **way)


def branch_of(model: PreTrainedModel, processor: Any, inputs: Any, **settings: Any) -> Tensor:
    """Logits of the branch at the first token, `(batch, vocabulary)`."""
    seen = []

    class Watched(vlmfix.ICD):
        def combine(self, context: Any, logits: Tensor, branches: Any) -> Tensor:
            seen.append(branches[0])
            return super().combine(context, logits, branches)

    with Watched(**settings)(model, processor):
        model.generate(**inputs, max_new_tokens=1)
    return seen[0]


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_template_has_a_system_message(name: str) -> None:
    """The branch is what the processor makes of a conversation with that message."""
    model, processor = vlmfix.load(name)
    image = render(demo_scene())
    instruction = vlmfix.ICD().instruction
    plain = prepare([[image]], [QUESTION], processor)
    for own in (None, "Be brief."):
        prompt = conversation(own, image, processor) if own else plain
        expected = conversation(instruction, image, processor)
        with torch.no_grad():
            logits = model(**expected).logits[:, -1].float()
        torch.testing.assert_close(branch_of(model, processor, prompt), logits, atol=1e-4, rtol=1e-4)


def conversation(system: str, image: Any, processor: Any) -> Any:
    """Inputs of a prompt with a system message."""
    turns = [
        {"role": "system", "content": system},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
    ]
    template = processor.chat_template or processor.tokenizer.chat_template
    text = processor.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return processor(images=[image], text=[text], return_tensors="pt")


class Letters:
    """A tokenizer whose tokens are characters, with one for the beginning."""

    bos_token_id = 0
    chat_template: str | None = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + [ord(letter) for letter in text]}


def processor_of(template: str | None) -> Any:
    """A processor with a template, in the notation of Jinja."""

    def apply(turns: Any, chat_template: str, tokenize: bool) -> str:
        return render_jinja_template([turns], chat_template=chat_template)[0][0]

    return SimpleNamespace(chat_template=template, tokenizer=Letters(), apply_chat_template=apply)


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<system>DEFAULT<end>{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<end>{% endfor %}"
)
LISTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endfor %}"
)
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "USER: {{ messages[0]['content'][0]['text'] }}"
)
SILENT = "USER: {{ messages[-1]['content'][0]['text'] }}"


@pytest.mark.parametrize(
    ("template", "head", "expected"),
    [
        (CHATML, "<system>DEFAULT<end><user>", "<system>MESSAGE<end><user>"),
        (CHATML, "<system>Be kind.<end><user>", "<system>MESSAGE<end><user>"),
        (CHATML, "<system>DEFAULT<end><user>Look: ", "<system>MESSAGE<end><user>Look: "),
        (CHATML, "<system>Be kind.<end><user>A<end><user>", "<system>MESSAGE<end><user>A<end><user>"),
        (CHATML, "Question: ", None),
        (CHATML, "<system>Be kind.", None),
        (LISTS, "[user]", "[system]MESSAGE[user]"),
        (LISTS, "[system]Be kind.[user]", "[system]MESSAGE[user]"),
    ],
)
@pytest.mark.parametrize("begin", [0, 1])
def test_system_slot(template: str, head: str, expected: str | None, begin: int) -> None:
    slot = SystemSlot.of(processor_of(template))
    assert slot is not None
    ids = [0] * begin + [ord(letter) for letter in head]
    found = slot.put([ord(letter) for letter in "MESSAGE"], ids)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        start, stop, new = found
        assert start >= begin
        put = [*ids[:start], *new, *ids[stop:]]
        assert put == [0] * begin + [ord(letter) for letter in expected]


@pytest.mark.parametrize("template", [None, REFUSING, SILENT], ids=["none", "refusing", "silent"])
def test_templates_without_a_system_slot(template: str | None) -> None:
    assert SystemSlot.of(processor_of(template)) is None


def test_needs_the_processor_unless_given_tokens(llava: PreTrainedModel) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="ICD needs the processor"):
        vlmfix.ICD()(llava).__enter__()
    inputs = families.prompt("llava", llava)
    with vlmfix.ICD(instruction_ids=[5])(llava):
        given = llava.generate(**inputs, max_new_tokens=4, do_sample=False)
    with vlmfix.ICD()(llava, families.PROCESSOR):  # whose tokenizer knows none of these words
        assert torch.equal(llava.generate(**inputs, max_new_tokens=4, do_sample=False), given)


def test_in_vlmfix_generate(loaded: tuple[Any, Any]) -> None:
    image = render(demo_scene())
    settings = {"max_new_tokens": 20}
    stock = vlmfix.generate(*loaded, image, "Describe the image.", **settings)
    strong = vlmfix.ICD(alpha=5.0, beta=0.0)
    assert vlmfix.generate(*loaded, image, "Describe the image.", strong, **settings) != stock


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1"),
        ({"instruction": " "}, "instruction is ' '; it must be a text"),
        ({"instruction_ids": ()}, r"instruction_ids is \(\); it must hold token ids"),
        ({"instruction_ids": (1.5,)}, r"instruction_ids is \(1\.5,\)"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.ICD(**parameters)
