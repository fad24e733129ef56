"""torchao: methods on int8 weights give what they give on an ordinary model with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TorchAoConfig

import vlmfix
from tests.support import families, interop

pytest.importorskip("torchao", reason="torchao is not installed; make test-integrations has it")
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, quantize_

pytestmark = pytest.mark.slow


def test_methods_act_on_int8_weights() -> None:
    model = families.build("llava")
    quantize_(model, Int8WeightOnlyConfig())
    assert isinstance(model.get_decoder().layers[0].self_attn.q_proj.weight, Int8Tensor)
    assert interop.differing(model, interop.dequantised(model)) == []


def test_loaded_in_int8(loaded: tuple[Any, Any]) -> None:
    model, processor = vlmfix.load(quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    assert isinstance(model.get_decoder().layers[0].self_attn.q_proj.weight, Int8Tensor)
    for method in (None, "var", "vcd", "carve"):
        texts = [
            vlmfix.generate(
                each, processor, "docs/scene.png", "Describe the image.", method, max_new_tokens=16
            )
            for each in (model, loaded[0])
        ]
        assert texts[0] == texts[1]
