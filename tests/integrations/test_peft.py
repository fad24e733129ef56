"""PEFT: adapters inside a model, loaded by vlmfix or around a model of the user's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vlmfix
from tests.support import families, interop
from tests.support.methods import ATTACHED, representatives
from vlmfix.models.loading import resolve

peft = pytest.importorskip("peft", reason="PEFT is not installed; make test-integrations has it")
pytestmark = pytest.mark.slow
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def adapted(**config: Any) -> Any:
    """A PEFT model whose adapter changes what it writes."""
    made = peft.get_peft_model(families.build("llava"), peft.LoraConfig(**config))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def test_methods_act_on_adapters_as_on_merged_weights() -> None:
    model = adapted(**LORA)
    merged = copy.deepcopy(model).merge_and_unload()
    assert interop.differing(model, merged, representatives(ATTACHED)) == []
    stock = families.build("llava")
    assert not torch.equal(interop.tokens("var", model), interop.tokens("var", stock))
    with model.disable_adapter():
        assert interop.differing(model, stock, ["var", "vcd"]) == []


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_tokens_before_the_prompt_are_refused(kind: str) -> None:
    config = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(families.build("llava"), config)
    with pytest.raises(vlmfix.UnsupportedError, match="use adapters inside the model, such as LoRA"):
        interop.tokens("var", model)


def test_an_adapter_loads_onto_its_base_with_the_processor_of_the_base(tmp_path: Path) -> None:
    base = resolve("tiny-llava")
    stock, processor = vlmfix.load(base, dtype="float32")
    picture = Image.new("RGB", (112, 112), "red")
    before = vlmfix.generate(stock, processor, picture, "Describe the image.", max_new_tokens=8)
    adapted = peft.get_peft_model(stock, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path)
    model, processor = vlmfix.load(tmp_path, dtype="float32")
    answers = [
        vlmfix.generate(each, processor, picture, "Describe the image.", max_new_tokens=8)
        for each in (adapted.base_model.model, model)
    ]
    assert answers[0] == answers[1] != before
    weights = load_file(tmp_path / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"an adapter for .* 1 weight missing"):
        vlmfix.load(tmp_path)
