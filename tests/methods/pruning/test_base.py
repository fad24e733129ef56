"""Pruning methods that keep everything, or that number the tokens that are left anew."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, values

pytestmark = [
    pytest.mark.promises,
    pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning"),
]


KEEPS_ALL: dict[str, dict[str, Any]] = {
    "adaptinfer": {"prune_layers": (1,), "kept_tokens": (10_000,)},
    "divprune": {"keep_ratio": 0.9999},
    "fastv": {"prune_ratio": 1e-6},
    "kmeans": {"kept_tokens": 10_000},
    "random_tokens": {"kept_tokens": 10_000},
    "sparsevlm": {"prune_layers": (1, 2), "kept_tokens": (10_000, 10_000)},
    "uniform_grid": {"kept_tokens": 10_000},
    "visionzip": {"dominant_tokens": 10_000},
}


@pytest.mark.parametrize("name", sorted(KEEPS_ALL))  # PyramidDrop has ratios alone: all 1 attaches nothing
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_keeping_every_token_is_the_stock_model(
    name: str, family: str, models: dict[str, PreTrainedModel]
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (1, 2))
    method = vlmfix.make_method(name, **KEEPS_ALL[name])
    stock = values(model, inputs, max_new_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vlmfix.InactiveMethodWarning)
        with method(model):
            output = model.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
    if method.edit_stats().site_share == 0:  # newline tokens leave with some methods, whatever the budget
        torch.testing.assert_close(torch.stack(output.logits), stock, atol=2e-5, rtol=1e-4)
    else:
        assert family == "llava_next"


@pytest.mark.parametrize(
    "name",
    ["random_tokens", "fastv", "sparsevlm", "pyramid_drop", "adaptinfer", "kmeans", "divprune", "visionzip"],
)
def test_renumbered_positions(name: str, llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2, 0))
    parameters = acting(name).parameters | {"position_scheme": "renumber"}
    method = vlmfix.make_method(name, **parameters)

    def run(inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
        with method(llava):
            output = llava.generate(
                **inputs,
                max_new_tokens=4,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **kwargs,
            )
        return torch.stack(output.logits)

    batch = run(inputs)
    torch.testing.assert_close(batch, run(inputs, use_cache=False), atol=1e-4, rtol=1e-4)
    for row, single in enumerate(families.split("llava", llava, inputs)):
        torch.testing.assert_close(batch[:, row], run(single)[:, 0], atol=1e-4, rtol=1e-4)
    with attached(name, llava):
        original = values(llava, inputs, max_new_tokens=4)
    assert (batch[:, 0] - original[:, 0]).abs().max() > 1e-4


def test_renumbered_tokens_are_a_shorter_prompt(llava: PreTrainedModel) -> None:
    """Before the first layer, dropping and renumbering is the stock model on the tokens that are left."""
    inputs = families.prompt("llava", llava)
    kept = []

    class Watched(vlmfix.RandomTokens):
        def choose(self, context: Any, layer: int, hidden_states: Tensor) -> Any:
            mask = super().choose(context, layer, hidden_states)
            if mask is not None:
                kept.append(hidden_states[0, mask[0]])
            return mask

    with Watched(kept_tokens=3, position_scheme="renumber")(llava):
        tokens = llava.generate(**inputs, max_new_tokens=6, do_sample=False)
    shorter = llava.get_decoder()
    states = kept[0][None]
    new = []
    with torch.no_grad():
        for _ in range(6):
            new.append(int(llava.lm_head(shorter(inputs_embeds=states).last_hidden_state[:, -1]).argmax()))
            states = torch.cat([states, llava.get_input_embeddings()(torch.tensor([new[-1:]]))], dim=1)
    assert tokens[0, inputs["input_ids"].shape[1] :].tolist() == new


def test_renumbering_is_refused_for_positions_in_three_axes(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="M-RoPE"):
        vlmfix.FastV(position_scheme="renumber")(models["qwen2_5_vl"]).__enter__()
