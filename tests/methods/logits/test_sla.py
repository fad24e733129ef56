"""Self-logit augmentation: the vector of its specification, and answers worked out without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import vlmfix
from tests.support import families, layer_reference, zoo
from vlmfix.methods.logits.sla import augment

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
EXITS = torch.tensor([[[1.0, 1.2, 0.8, -0.5, -1.0], [0.0, 2.5, 0.5, 0.0, -2.0]]])


def test_worked_example() -> None:
    expected = torch.tensor([[1.55, 1.255, 0.545, -0.775, -2.55]])
    torch.testing.assert_close(augment(LOGITS, EXITS, 0.3), expected, atol=1e-6, rtol=0)
    assert torch.equal(augment(LOGITS, EXITS, 0.0), LOGITS)


def test_banned_tokens_stay_banned() -> None:
    banned = LOGITS.clone()
    banned[0, 0] = -torch.inf
    mixed = augment(banned, torch.cat([EXITS[:, :1], banned[:, None]], dim=1), 0.3)
    assert mixed[0, 0] == -torch.inf
    assert mixed[0, 1:].isfinite().all()


def test_exits() -> None:
    assert vlmfix.SelfLogitAugmentation.published_exits(32) == (26, 27, 28, 29, 30, 31)
    assert vlmfix.SelfLogitAugmentation.published_exits(28) == (22, 23, 24, 25, 26, 27)
    assert vlmfix.SelfLogitAugmentation.published_exits(5) == (1, 2, 3, 4)
    assert vlmfix.SelfLogitAugmentation.published_exits(1) == (0,)
    config = AutoConfig.for_model("llava", **families.FAMILIES["llava"].config)
    assert vlmfix.SelfLogitAugmentation(exits=[3, 0]).resolve(config, None).exits == (0, 3)


@pytest.mark.parametrize("parameters", [{}, {"gamma": 0.8, "exits": (1, 3), "normed": True}])
def test_against_brute_force(parameters: dict[str, Any], model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    method = vlmfix.SelfLogitAugmentation(**parameters)
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    exits = method.exits or (1, 2, 3, 4)
    agreed = []

    def mix(logits: Tensor, states: list[Tensor]) -> Tensor:
        total = torch.zeros_like(logits)
        for each in exits:
            with torch.no_grad():
                total += head(norm(states[each]) if method.normed else states[each])
        agreed.append(float(total.argmax() == logits.argmax()))
        return (1 - method.gamma) * logits + method.gamma * total / len(exits)

    expected = layer_reference.answers(model, family, inputs, mix)
    with method(model):
        found = layer_reference.generated(model, inputs)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert method.edit_stats().size == pytest.approx(sum(agreed) / len(agreed))


def test_capped_logits_are_averaged_one_by_one() -> None:
    """Where the model caps its logits, the logits of the mean state are not the mean of the logits."""
    model, cap = zoo.build("gemma4"), 0.02
    model.config.get_text_config().final_logit_softcapping = cap
    inputs = zoo.prompt("gemma4", model)
    states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
    with torch.no_grad():
        exits = [model.get_output_embeddings()(states[each][:, -1]) for each in (1, 2)]
    whole = model(**inputs).logits[:, -1]
    assert (whole.abs() > cap / 2).any()
    expected = 0.5 * whole + 0.25 * sum(torch.tanh(each / cap) * cap for each in exits)
    with vlmfix.SelfLogitAugmentation(gamma=0.5, exits=(1, 2))(model):
        found = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        ).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_it_is_refused_where_another_method_defines_the_logits(llava: PreTrainedModel) -> None:
    method = vlmfix.SelfLogitAugmentation()
    with vlmfix.VCD()(llava), pytest.raises(vlmfix.UnsupportedError, match="VCD defines the logits"):
        method(llava).__enter__()


def test_refusals(llava: PreTrainedModel) -> None:
    for parameters, words in (
        ({"gamma": 1.1}, "gamma is 1.1; it must be a number from 0 to 1"),
        ({"exits": ()}, "one exit at least"),
        ({"normed": 1}, "true or false"),
        ({"exits": (1, 5)}, "go from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=words):
            vlmfix.SelfLogitAugmentation(**parameters)(llava).__enter__()
