"""The feed-forward part of the last layer: one row of branches, all of prompts, and the layer as it was."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import values
from tests.support.names import QUICK
from vlmfix.engine import last_row


def rows(model: PreTrainedModel, layer: int, inputs: dict[str, Tensor], method: vlmfix.Method) -> list[int]:
    """Rows that the feed-forward part of a layer computes in the passes of a prefill."""
    seen: list[int] = []
    projection = model.get_decoder().layers[layer].mlp.down_proj
    handle = projection.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    with method(model, families.PROCESSOR):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    handle.remove()
    return seen


def test_branches_alone(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model)
    whole = inputs["input_ids"].shape[1]
    assert rows(model, families.LAYERS - 1, inputs, vlmfix.VCD()) == [whole, 1]
    inner = rows(model, families.LAYERS - 2, inputs, vlmfix.VCD())
    assert inner[0] == whole
    assert inner[1] > 1
    assert "forward" not in vars(model.get_decoder().layers[-1].mlp)


def test_what_the_branch_says(llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = families.prompt(QUICK, llava, (1, 2))
    with vlmfix.VCD(beta=0)(llava):
        found = values(llava, inputs, max_new_tokens=3)
    monkeypatch.setattr(last_row, "_is_of_linear_maps", lambda part: False)
    with vlmfix.VCD(beta=0)(llava):
        torch.testing.assert_close(found, values(llava, inputs, max_new_tokens=3), atol=2e-5, rtol=1e-4)


class FeedForward(nn.Module):
    """A gated part, or one of something else beside."""

    def __init__(self, *others: nn.Module, bare: bool = False) -> None:
        super().__init__()
        self.up, self.others = nn.Linear(4, 4), nn.ModuleList(others)
        self.scale = nn.Parameter(torch.ones(4)) if bare else None

    def forward(self, states: Tensor) -> Tensor:
        return self.up(states)


@pytest.mark.parametrize(
    ("part", "taken"),
    [
        (FeedForward(), True),
        (FeedForward(nn.Dropout()), True),
        (FeedForward(nn.Linear(4, 4)), False),  # experts
        (FeedForward(nn.LayerNorm(4)), False),
        (FeedForward(bare=True), False),
    ],
)
def test_parts_that_are_known(part: nn.Module, taken: bool) -> None:
    layer = nn.Module()
    layer.self_attn, layer.mlp = nn.Identity(), part
    layer.input_layernorm, layer.post_attention_layernorm = nn.Identity(), nn.Identity()
    decoder: Any = nn.Module()
    decoder.layers = nn.ModuleList([layer])
    states, enough = torch.randn(2, 3, 4), False
    whole = part(states)
    with ExitStack() as undo:
        last_row.install(decoder, lambda: enough, undo)
        assert torch.equal(part(states), whole)
        enough = True
        found = part(states)
        assert found.shape == whole.shape
        torch.testing.assert_close(found[:, -1], whole[:, -1])
        assert torch.equal(found[:, 0], found[:, -1]) is taken
    assert torch.equal(part(states), whole)
