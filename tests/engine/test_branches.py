"""Which attention classes let branches be decoded in one pass with the prompts."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention

from vlmfix.engine.branches import hands_on_keys


def without_source() -> Any:
    return eval("lambda self: None")


@pytest.mark.parametrize(
    ("forward", "hands_on"),
    [
        (LlamaAttention.forward, True),
        (Qwen2VLAttention.forward, True),
        (DeepseekV3Attention.forward, False),  # makes keys of what it keeps
        (without_source(), False),
    ],
)
def test_keys_go_on_as_they_are(forward: Any, hands_on: bool) -> None:
    assert hands_on_keys(forward) is hands_on
