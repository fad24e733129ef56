"""optimum-quanto: methods on int8 weights give what they give on an ordinary model with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import QuantoConfig

import vlmfix
from tests.support import families, interop

quanto = pytest.importorskip(
    "optimum.quanto", reason="optimum-quanto is not installed; make test-integrations has it"
)
pytestmark = pytest.mark.slow


def test_methods_act_on_int8_weights() -> None:
    model = families.build("llava")
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    assert isinstance(model.get_decoder().layers[0].self_attn.q_proj, quanto.nn.QLinear)
    assert interop.differing(model, interop.dequantised(model)) == []


def test_loaded_in_int8(loaded: tuple[Any, Any]) -> None:
    model, processor = vlmfix.load(quantization_config=QuantoConfig(weights="int8"))
    assert model.get_decoder().layers[0].self_attn.q_proj.weight.dequantize().dtype == torch.float32
    for method in (None, "var", "vcd", "carve"):
        texts = [
            vlmfix.generate(
                each, processor, "docs/scene.png", "Describe the image.", method, max_new_tokens=16
            )
            for each in (model, loaded[0])
        ]
        assert texts[0] == texts[1]
