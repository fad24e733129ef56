"""Random heads in the place of those that a method chooses: as many, others, and the same edit."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import ACTING, values
from vlmfix import ADHH, VHR, BaselineRandomHeads
from vlmfix.methods.attention.var import TokenGroups, redistribute
from vlmfix.methods.baselines.random_heads import RandomVAR, head_order, other_heads
from vlmfix.models.structure import text_decoder


def test_lists_have_as_many_heads_in_each_layer() -> None:
    listed = ((1, 0), (1, 5), (3, 2))
    drawn = [other_heads(listed, 8, seed=seed) for seed in range(40)]
    assert all(Counter(layer for layer, _ in each) == {1: 2, 3: 1} for each in drawn)
    assert not any(set(each) & set(listed) for each in drawn)
    assert {pair for each in drawn for pair in each} == {
        (1, head) for head in range(8) if head not in (0, 5)
    } | {(3, head) for head in range(8) if head != 2}
    assert other_heads(listed, 8, seed=3) == drawn[3]
    many = tuple((0, head) for head in range(3))
    assert set(other_heads(many, 4, seed=0)) > {(0, 3)}  # no two others are left
    assert len(set(other_heads(many, 4, seed=0))) == 3


def test_vhr_scales_as_many_others(models: dict[str, PreTrainedModel]) -> None:
    """In the last layer alone, before which nothing differs: what its output projection reads of the last
    prompt token tells the factors."""
    model = models["llava"]
    inputs = families.prompt("llava", model, (2, 1))
    settings: dict[str, Any] = {"num_last_layers": 1, "extra_layers": ()}
    last = inputs["input_ids"].shape[1] - 1
    seen: list[Tensor] = []

    def keep(module: Any, args: tuple[Tensor]) -> None:
        seen.append(args[0][:, last].unflatten(1, (4, 8)))

    methods = VHR(**settings), BaselineRandomHeads(of="vhr", settings=settings, seed=5)
    with ExitStack() as undo:
        projection = text_decoder(model).layers[-1].self_attn.o_proj
        undo.callback(projection.register_forward_pre_hook(keep).remove)
        values(model, inputs, max_new_tokens=1)
        for method in methods:
            with method(model):
                values(model, inputs, max_new_tokens=1)
    own, drawn = ((each[:2] / seen[0]).mean(dim=2).round() == 2 for each in seen[1:])
    order = head_order(4, 4, seed=5)
    assert not torch.equal(own, drawn)
    assert torch.equal(drawn, own[:, order])
    assert methods[0].edit_stats().site_share == methods[1].edit_stats().site_share


def test_var_redistributes_in_as_many_others() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 6, 3, 9, generator=generator).mul(2).softmax(dim=-1)
    image = torch.tensor([[False, True, True, True, True, False, False, False, False]] * 2)
    sinks = torch.tensor([[True, True, False, False, False, False, False, False, False]] * 2)
    method = RandomVAR(of="var", seed=4, min_image_mass=0.5, min_non_sink_share=0.6, sink_dimensions=(0,))
    context: Any = SimpleNamespace(state={(method, 2): TokenGroups.of(sinks, image)})
    found = method.edit_weights(context, 2, weights)
    bounds = {"moved_fraction": 0.4, "min_image_mass": 0.5, "min_non_sink_share": 0.6}
    own = redistribute(weights, sinks, image, **bounds)
    order = head_order(6, 2, seed=4).tolist()
    assert order != sorted(order)
    counts = []
    for sample in range(2):
        for row in range(3):
            for head in range(6):
                before = weights[sample, head, row]
                taken = order[head]
                if torch.equal(own[sample, taken, row], weights[sample, taken, row]):
                    assert torch.equal(found[sample, head, row], before)
                    continue
                counts.append((sample, row))
                target = float(before[2:5].sum())
                moved = 0.4 * float(before[:2].sum())
                wanted = [*(0.6 * before[:2]), *(before[2:5] * (1 + moved / target)), *before[5:]]
                torch.testing.assert_close(found[sample, head, row], torch.stack(wanted))
    assert 6 < len(counts) < 30
    edited = [(each != weights).any(dim=-1).sum(dim=1) for each in (own, found)]
    assert torch.equal(*edited)


@pytest.mark.parametrize("of", ["adhh", "act"])
def test_listed_heads_are_exchanged(of: str, models: dict[str, PreTrainedModel]) -> None:
    model = models["llava"]
    inputs = families.prompt("llava", model, (2, 1))
    heads = ((1, 0), (2, 1), (2, 3))
    settings = {**ACTING[of], "heads": heads}
    control = BaselineRandomHeads(of=of, settings=settings, seed=2)
    with control(model):
        found = values(model, inputs, max_new_tokens=3)
    others = other_heads(heads, 4, seed=2)
    with vlmfix.make_method(of, **{**settings, "heads": others})(model):
        assert torch.equal(values(model, inputs, max_new_tokens=3), found)
    with vlmfix.make_method(of, **settings)(model):
        assert not torch.equal(values(model, inputs, max_new_tokens=3), found)
    resolved = control.resolve(model.config, None)
    assert resolved.heads == others
    assert resolved.parameters["settings"]["heads"] == heads
    assert BaselineRandomHeads(**resolved.parameters).resolve(model.config, None) == resolved


def test_what_does_not_fit_is_refused(models: dict[str, PreTrainedModel]) -> None:
    config = models["llava"].config
    with pytest.raises(ValueError, match="of is 'pai'; it must be one of 'vhr', 'adhh', 'var', 'act'"):
        BaselineRandomHeads(of="pai")
    with pytest.raises(ValueError, match="vhr has no parameter 'threshold'"):
        BaselineRandomHeads(settings={"threshold": 1})
    with pytest.raises(ValueError, match="settings is 3; it must be a mapping of parameters of vhr"):
        BaselineRandomHeads(settings=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="edits all heads with heads='all', and no others could be drawn"):
        BaselineRandomHeads(of="act", settings={"heads": "all"}).resolve(config, None)
    with pytest.raises(ValueError, match="no hallucination heads are known for this checkpoint"):
        BaselineRandomHeads(of="adhh").resolve(config, None)
    assert BaselineRandomHeads(of="adhh", settings={"heads": ()}).is_identity
    assert ADHH(heads=()).is_identity
