"""RUDDER: the vectors of its specification, and a model with the same edit by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.support import families
from tests.support.methods import values
from tests.support.stream_reference import Edit, answers, seen
from vlmfix import RUDDER
from vlmfix.methods.steering.rudder import evidence_direction, trust
from vlmfix.models.profiles import Profile
from vlmfix.models.structure import text_decoder
from vlmfix.settings import configs_directory

ADDED = torch.tensor([[[3.0, 0.0, 4.0], [0.0, 1.0, 0.0], [1.0, 2.0, 2.0]]])


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [("mean", [0.512148, 0.384111, 0.768221]), ("norm", [0.555757, 0.216128, 0.802760])],
)
def test_directions(pooling: str, wanted: list[float]) -> None:
    padded = torch.cat([torch.full((1, 2, 3), 7.0), ADDED], dim=1)
    real = torch.tensor([[False, False, True, True, True]])
    found = evidence_direction(padded, real, pooling=pooling)
    torch.testing.assert_close(found, torch.tensor([wanted]), atol=1e-6, rtol=0)
    assert torch.equal(evidence_direction(0 * ADDED, real[:, 2:], pooling=pooling), torch.zeros(1, 3))


def test_an_edited_state() -> None:
    stream, attention = torch.tensor([1.0, -1.0, 0.5]), torch.tensor([0.2, 0.1, -0.3])
    direction = evidence_direction(ADDED, torch.ones(1, 3).bool())[0]
    agreement = torch.cosine_similarity(stream, direction, dim=0)
    opening = trust(agreement, steepness=5.0, offset=1.0)
    assert (float(agreement), float(opening)) == pytest.approx((0.494006, 0.944183), abs=1e-6)
    steered = stream + attention + 2.0 * opening * direction
    torch.testing.assert_close(steered, torch.tensor([2.249472, -0.491872, 1.715904]), atol=1e-5, rtol=0)


def test_gates() -> None:
    agreement = torch.tensor([-0.9, -0.1, 0.0, 0.1, 0.5], requires_grad=True)
    opening = trust(agreement, steepness=5.0, offset=1.0)
    wanted = torch.tensor([0.005376, 0.364074, 0.5, 0.635926, 0.946019])
    torch.testing.assert_close(opening.detach(), wanted, atol=1e-6, rtol=0)
    [slopes] = torch.autograd.grad(opening.sum(), agreement)
    assert float(slopes[2]) == pytest.approx(1.391685, abs=1e-5)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llava", {"alpha_max": 8.0}),
        ("llava", {"alpha_share": 0.5, "layer": 1, "pooling": "mean", "trust_gate": False}),
        ("qwen2_5_vl", {"alpha_max": 8.0, "gate_min": 0.3, "gate_max": 0.6, "steepness": 8.0, "offset": 0.5}),
        ("qwen2_5_vl", {}),
    ],
    ids=str,
)
def test_model_against_the_edit_by_hand(
    family: str, settings: dict[str, Any], models: dict[str, PreTrainedModel]
) -> None:
    """New rows of one layer alone, 30 of 32 layers is 4 of 5; the prompt is read unedited."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 1))
    method = RUDDER(**settings)
    layer = text_decoder(model).layers[4 if method.layer is None else method.layer]
    entering: list[Tensor] = []

    def edits_of(single: dict[str, Tensor]) -> Mapping[nn.Module, Edit]:
        stream, _ = seen(model, single, layer)
        _, added = seen(model, single, layer.self_attn)
        weights = [float(each.norm()) if method.pooling == "norm" else 1.0 for each in added]
        pooled = sum((weight * each for weight, each in zip(weights, added, strict=True)), 0 * added[0])
        direction = pooled / pooled.norm()
        share = 0.2 if method.alpha_share is None else method.alpha_share
        length = share * float(stream.norm(dim=-1).mean())
        length = length if method.alpha_max is None else method.alpha_max

        def edit(states: Tensor) -> Tensor:
            rows = []
            for own, before in zip(states, entering[-1], strict=True):
                agreement = float(before @ direction / before.norm())
                good, bad = (
                    softplus(sign * method.steepness * agreement + method.offset) for sign in (1, -1)
                )
                opening = min(max(good / (good + bad), method.gate_min), method.gate_max)
                rows.append(own + length * (opening if method.trust_gate else 1.0) * direction)
            return torch.cat([states[:last], torch.stack(rows)[last:]])

        last = single["input_ids"].shape[1] - 1
        return {layer.self_attn: edit}

    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: entering.append((args[0] if args else kwargs["hidden_states"])[0]),
        with_kwargs=True,
    )
    wanted = answers(model, family, inputs, edits_of)
    hook.remove()
    with method(model):
        found = values(model, inputs, max_new_tokens=3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, values(model, inputs, max_new_tokens=3), atol=1e-2)


def test_the_strength_is_that_of_the_checkpoint_or_a_share(models: dict[str, PreTrainedModel]) -> None:
    config = models["llava"].config
    profile = Profile.read(configs_directory() / "models" / "llava-1.5-7b.yaml")
    known = RUDDER().resolve(config, profile)
    assert (known.alpha_max, known.alpha_share, known.layer) == (20.0, None, 4)
    unknown = RUDDER().resolve(config, None)
    assert (unknown.alpha_max, unknown.alpha_share) == (None, 0.2)
    chosen = RUDDER(alpha_share=0.4).resolve(config, profile)
    assert (chosen.alpha_max, chosen.alpha_share) == (None, 0.4)
    assert RUDDER(**known.parameters).resolve(config, None) == known
    assert RUDDER(alpha_share=0).is_identity
    assert RUDDER(alpha_max=0).is_identity
    assert RUDDER.info.provenance == "reconstruction"


def test_values_out_of_range_are_refused(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(ValueError, match=r"alpha_max is 20 and alpha_share 0\.2, and both say .* give one"):
        RUDDER(alpha_max=20, alpha_share=0.2)
    with pytest.raises(ValueError, match=r"gate_max is 0\.1; it must be a number from 0\.5 to 1"):
        RUDDER(gate_min=0.5, gate_max=0.1)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        RUDDER(pooling="max")
    with pytest.raises(ValueError, match="layer is 5"):
        RUDDER(layer=5)(models["llava"]).__enter__()
