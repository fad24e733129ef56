"""What people load around and inside a model: adapters, wrappers, and layers that keep other weights."""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting
from vlmfix.engine.compatibility import stock_model


class Adapters(nn.Module):
    """A stand-in for a `PeftModel`: a module with the model inside."""

    active_peft_config: Any = None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def get_base_model(self) -> nn.Module:
        return self.base_model["model"]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_base_model().generate(*args, **kwargs)


class BufferLinear(nn.Module):
    """A linear layer as GPTQ and AWQ make them: no parameters, and no `weight`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", linear.weight.detach().clone())
        self.register_buffer("added", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.qweight, self.added)


def with_buffers(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, BufferLinear(child))
        else:
            with_buffers(child)


def steered(name: str, wrapper: Any, model: PreTrainedModel) -> Tensor:
    method, inputs = acting(name), families.prompt("llava", model, (1, 2))
    with method(wrapper, families.PROCESSOR):
        return wrapper.generate(**inputs, max_new_tokens=4, do_sample=False)


def test_wrappers_are_unwrapped(llava: PreTrainedModel) -> None:
    wrappers = Adapters(llava), torch.compile(llava, backend="eager"), Adapters(Adapters(llava))
    expected = steered("vcd", llava, llava)
    inputs = families.prompt("llava", llava, (1, 2))
    for wrapper in wrappers:
        assert stock_model(wrapper) is llava
        assert torch.equal(steered("vcd", wrapper, llava), expected)
    processors = acting("vcd").logits_processor(wrappers[0], inputs)
    processed = llava.generate(**inputs, max_new_tokens=4, do_sample=False, logits_processor=processors)
    assert torch.equal(processed, expected)


def test_text_in_text_out_of_a_wrapper(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    for method in ("var", "carve", None):
        texts = [
            vlmfix.generate(each, processor, "docs/scene.png", "Describe it.", method, max_new_tokens=4)
            for each in (model, Adapters(model))
        ]
        assert texts[0] == texts[1]


def test_what_changes_prompts_is_refused(llava: PreTrainedModel) -> None:
    wrapper = Adapters(llava)
    wrapper.active_peft_config = type("PromptTuning", (), {"is_prompt_learning": True})
    with pytest.raises(vlmfix.UnsupportedError, match="learned tokens before the prompt"):
        steered("var", wrapper, llava)
    with pytest.raises(vlmfix.UnsupportedError, match="Linear is not a transformers model"):
        steered("var", nn.Linear(1, 1), llava)


@pytest.mark.parametrize("name", ["only", "dola", "visionzip", "vhr", "gift", "vcd"])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
def test_layers_without_parameters(name: str, llava: PreTrainedModel) -> None:
    model = families.build("llava")
    with_buffers(model)
    assert torch.equal(steered(name, model, model), steered(name, llava, llava))
    dynamic = torch.ao.quantization.quantize_dynamic(families.build("llava"), {nn.Linear}, dtype=torch.qint8)
    assert steered(name, dynamic, dynamic).shape[1] == steered(name, model, model).shape[1]
    offloaded = families.build("llava")
    accelerate.cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert torch.equal(steered(name, offloaded, offloaded), steered(name, llava, llava))
