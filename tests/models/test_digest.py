"""The digest of weights: the same however they were loaded, another one for other weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from vlmfix.models.digest import weights_digest


@pytest.fixture(scope="module")
def stock() -> PreTrainedModel:
    """The embedded model, whose checkpoint is in float16."""
    return vlmfix.load()[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_loading_does_not_matter(dtype: str, stock: PreTrainedModel) -> None:
    assert weights_digest(vlmfix.load(dtype=dtype)[0]) == weights_digest(stock)


def test_weights_that_float16_cannot_hold_well() -> None:
    weights = torch.randn(64, 64).mul(1e-5).bfloat16()
    layers = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layers.append(nn.Linear(64, 64, bias=False).to(dtype))
        layers[-1].weight.data.copy_(weights)
    assert len({weights_digest(layer) for layer in layers}) == 1


def test_methods_and_offloading_do_not_matter(stock: PreTrainedModel) -> None:
    digest = weights_digest(stock)
    with vlmfix.VAR()(stock), vlmfix.VCD()(stock):
        assert weights_digest(copy.copy(stock)) == digest
    assert weights_digest(cpu_offload(vlmfix.load()[0], execution_device="cpu")) == digest


def test_a_model_without_weights_has_no_digest(stock: PreTrainedModel) -> None:
    assert weights_digest(copy.deepcopy(stock).to("meta")) is None


def add(model: Any) -> None:
    model.lm_head.weight.add_(0.01)


def replace(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight + 0.01)


def replace_data(model: Any) -> None:
    model.lm_head.weight.data = model.lm_head.weight.data + 0.01


def load_state(model: Any) -> None:
    model.load_state_dict({name: value * 1.01 for name, value in model.state_dict().items()})


def replace_module(model: Any) -> None:
    model.lm_head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)


def quantize(model: Any) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize")
@pytest.mark.parametrize("change", [add, replace, replace_data, load_state, replace_module, quantize])
def test_a_change_of_weights_is_noticed(change: Callable[[Any], None], stock: PreTrainedModel) -> None:
    model = copy.deepcopy(stock)
    before = weights_digest(model)
    assert before == weights_digest(stock)
    with torch.no_grad():
        change(model)
    assert weights_digest(model) not in (None, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize")
def test_quantised_models_with_other_weights_differ(stock: PreTrainedModel) -> None:
    models = [copy.deepcopy(stock) for _ in range(2)]
    with torch.no_grad():
        models[1].get_decoder().layers[0].mlp.up_proj.weight.copy_(torch.randn(448, 192))
    for model in models:
        quantize(model)
    assert weights_digest(models[0]) != weights_digest(models[1])


def test_weights_made_in_inference_mode() -> None:
    model = families.build("llava")
    expected = weights_digest(model)
    with torch.inference_mode():
        for module in model.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    module._parameters[name] = torch.nn.Parameter(weight.clone(), requires_grad=False)
    assert next(model.parameters()).is_inference()
    assert weights_digest(model) == expected
