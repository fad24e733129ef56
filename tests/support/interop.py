"""What another package did to a model must not change what methods do on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support import families
from tests.support.methods import ATTACHED, acting

UNLIKE = ("var", "vhr", "gift", "vista", "vcd", "dola", "fastv", "visionzip")
"""Methods that act at different places of a model."""


def tokens(name: str, model: Any) -> Tensor:
    """What a model of the family "llava" writes under a method, or plainly under ""."""
    inputs = families.prompt("llava", model, (1, 2))
    ways: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    if name == "opera":  # which searches by itself
        ways |= {"num_beams": 2}
    if not name:
        return model.generate(**inputs, **ways)
    method = acting(name)
    with method(model, families.PROCESSOR):
        if name == "opera":
            ways["custom_generate"] = method.decode
        return model.generate(**inputs, **ways)


def differing(model: Any, reference: PreTrainedModel, names: list[str] | None = None) -> list[str]:
    """Methods under which two models do not write the same; all that act inside `generate` are tried."""
    return [
        name
        for name in ("", *(ATTACHED if names is None else names), "")
        if not torch.equal(tokens(name, model), tokens(name, reference))
    ]


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """An ordinary model with the weights that a quantised one computes with."""
    plain = families.build("llava")
    quantised = dict(model.named_modules())
    for name, module in plain.named_modules():
        weight = getattr(quantised[name], "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and hasattr(weight, "dequantize"):
            module.weight = nn.Parameter(weight.dequantize().detach().clone(), requires_grad=False)
    return plain
