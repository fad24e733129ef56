"""Rows read again under gates equal whole passes in which a head is silenced by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.methods import pairs
from vlmfix.calibration import caption_rows
from vlmfix.calibration.caption_rows import CaptionRows
from vlmfix.calibration.head_statistics import head_mask

ANSWER = [20, 31, 42, 53, 64, 75]
PLACES = [0, 3, 5]
SHAPE = (families.LAYERS, 4)
HEADS = [(layer, head) for layer in range(families.LAYERS) for head in range(4)]


def by_hand(
    model: PreTrainedModel, inputs: dict[str, Tensor], place: int, layer: int = -1, head: int = 0
) -> float:
    """Probability of a token of the answer where a head gives zeros in the row before it."""
    whole = families.continued(inputs, ANSWER[:place]) if place else inputs

    def silence(projection: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        size = args[0].shape[-1] // model.config.get_text_config().num_attention_heads
        outputs = args[0].clone()
        outputs[0, -1, head * size : (head + 1) * size] = 0
        return (outputs,)

    attention = model.get_decoder().layers[layer].self_attn
    handle = attention.o_proj.register_forward_pre_hook(silence) if layer >= 0 else None
    with torch.no_grad():
        logits = model(**whole, use_cache=False).logits
    if handle is not None:
        handle.remove()
    return float(logits[0, -1].softmax(dim=-1)[ANSWER[place]])


@pytest.mark.parametrize(("tokens", "family"), pairs([10**6, 110], in_turn=True))  # one pass, several
def test_exact_effects_equal_those_by_hand(
    tokens: int, family: str, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_rows, "_TOKENS", tokens)
    inputs = families.prompt(family, model)
    before = families.fingerprint(model)["modules"]
    rows = CaptionRows(model, inputs, ANSWER)
    found = rows.exact(PLACES, head_mask([[head] for head in HEADS], SHAPE))
    some = HEADS[::3]
    expected = [
        [by_hand(model, inputs, place) - by_hand(model, inputs, place, *head) for head in some]
        for place in PLACES
    ]
    torch.testing.assert_close(found[:, ::3], torch.tensor(expected), atol=1e-8, rtol=1e-4)
    assert (found != 0).all()
    assert (rows.exact(PLACES, head_mask([[]], SHAPE)).abs() < 1e-8).all()
    assert families.fingerprint(model)["modules"] == before


def test_estimates_are_the_slopes(family: str, model: PreTrainedModel) -> None:
    rows = CaptionRows(model, families.prompt(family, model), ANSWER)
    with torch.no_grad():  # as commands run
        found, probabilities = rows.first_order(PLACES)
    places, gates, step = torch.tensor(PLACES), torch.ones(len(PLACES), *SHAPE), 0.02
    torch.testing.assert_close(probabilities, rows.probabilities(places, gates))
    for layer, head in HEADS[1::6]:
        up, down = gates.clone(), gates.clone()
        up[:, layer, head] += step
        down[:, layer, head] -= step
        slopes = (rows.probabilities(places, up) - rows.probabilities(places, down)) / (2 * step)
        torch.testing.assert_close(found[:, layer, head], slopes.detach(), atol=1e-6, rtol=5e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_is_gated_in_float32() -> None:
    model = families.build("qwen2_5_vl", dtype=torch.bfloat16)
    rows = CaptionRows(model, families.prompt("qwen2_5_vl", model), ANSWER)
    found, _ = rows.first_order(PLACES)
    exact = rows.exact(PLACES, head_mask([[head] for head in HEADS], SHAPE))
    assert found.dtype == exact.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.5
