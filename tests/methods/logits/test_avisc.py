"""AvisC: the vector of its specification, and its branch read alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import Inputs, answered, check_branches, images_of, in_some_ways, last_logits
from tests.support.full_matrices import full_matrices
from vlmfix.methods.logits.avisc import blind_tokens

ATTENTION = torch.tensor(
    [[[0.02, 0.03, 0.05, 0.02], [0.20, 0.10, 0.05, 0.05], [0.05, 0.05, 0.10, 0.10], [0.01, 0.01, 0.02, 0.04]]]
)


@pytest.mark.parametrize("padding", [0, 2])
def test_vector(padding: int) -> None:
    attention = torch.nn.functional.pad(ATTENTION, (padding, 0), value=0.3)  # text takes no part
    image = torch.tensor([[False] * padding + [True] * 4])
    blind = blind_tokens(attention, image, layer_share=0.5, std_factor=1.0)
    assert (blind[0].nonzero().flatten() - padding).tolist() == [0]


def test_layers_that_count() -> None:
    """With a share of 0 the first layer alone, with 1 all of them."""
    image = torch.ones(1, 4, dtype=torch.bool)
    attention = torch.tensor([[[0.0, 0.0, 0.3, 0.0], [0.1, 0.0, 0.0, 0.0], [0.6, 0.0, 0.0, 0.0]]])
    for share, token in ((0.0, 0), (0.5, 0), (0.65, 0), (1.0, 0)):
        blind = blind_tokens(attention, image, layer_share=share, std_factor=1.0)
        assert blind[0].nonzero().flatten().tolist() == [token]
    attention[0, 2, 0] = 0.25
    blind = blind_tokens(attention, image, layer_share=0.2, std_factor=1.0)
    assert blind[0].nonzero().flatten().tolist() == [2]


def test_one_image_token_and_none() -> None:
    image = torch.tensor([[True, False], [False, False]])
    blind = blind_tokens(torch.rand(2, 3, 2), image, layer_share=0.5, std_factor=1.0)
    assert torch.equal(blind, image)


def blind_of(rows: Tensor, layer_share: float, std_factor: float) -> list[bool]:
    """From `(layers, tokens)` attention to the image, by lists."""
    totals = rows.sum(dim=1).tolist()
    order = sorted(range(len(totals)), key=lambda layer: -totals[layer])
    chosen: list[int] = []
    for layer in order:
        chosen.append(layer)
        if sum(totals[each] for each in chosen) / sum(totals) >= layer_share:
            break
    mean = rows[chosen].mean(dim=0)
    return (mean >= mean.mean() + std_factor * mean.std()).tolist()


@in_some_ways
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    method = vlmfix.AvisC(std_factor=0.5, layer_share=0.7, beta=0.001, fused=fused)

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        image = (single["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten()
        length = single["input_ids"].shape[1]
        seen: dict[int, Tensor] = {}

        def look(layer: int, sample: int, position: int, scores: Tensor) -> None:
            if position == length - 1:
                seen[layer] = scores.softmax(dim=-1).mean(dim=0)[image]

        with full_matrices(model, look):
            last_logits(model, single)
        rows = torch.stack([seen[layer] for layer in sorted(seen)]).double()
        kept = blind_of(rows, method.layer_share, method.std_factor)
        assert 0 < sum(kept) < len(kept)
        hidden = image[~torch.tensor(kept)]

        def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            embeddings = kwargs["inputs_embeds"].clone()
            embeddings[:, hidden] = 0.0
            kwargs = {**kwargs, "inputs_embeds": embeddings}
            if kwargs.get("deepstack_visual_embeds") is not None:
                own = torch.tensor(kept)[:, None]
                kwargs["deepstack_visual_embeds"] = [each * own for each in kwargs["deepstack_visual_embeds"]]
            return args, kwargs

        handle = model.get_decoder().register_forward_pre_hook(hide, with_kwargs=True)
        try:
            return [last_logits(model, answered(single, new))]
        finally:
            handle.remove()

    check_branches(model, family, method, inputs, alone, steps=3, **way)


def test_its_share_of_blind_tokens_is_reported(llava: PreTrainedModel) -> None:
    method = vlmfix.AvisC()
    with method(llava):
        llava.generate(**families.prompt("llava", llava, (1, 0)), max_new_tokens=3, do_sample=False)
    size = method.edit_stats().size
    assert size is not None
    assert 0 < size < 0.5


def test_beside_a_pruning_the_tokens_that_left_get_nothing(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    kept: list[Tensor] = []

    class Watched(vlmfix.AvisC):
        def _blind(self, context: Any, branch: Any) -> None:
            super()._blind(context, branch)
            kept.append(branch.inputs_embeds.ne(0).any(dim=-1) & context.layout.image_tokens)
            assert not (kept[-1] & ~left(context)).any()

    def left(context: Any) -> Tensor:
        stage = context.layout_at(4)
        tokens = torch.zeros_like(context.layout.image_tokens)
        return tokens.scatter(1, stage.positions, stage.image_tokens)

    with vlmfix.RandomTokens(kept_tokens=6)(llava), Watched(std_factor=0.5)(llava):
        llava.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert kept[0].any()


def test_the_strength_of_captions() -> None:
    assert vlmfix.AvisC.caption() == vlmfix.AvisC(alpha=2.5)
    assert vlmfix.AvisC.caption(alpha=2.0, beta=0.2) == vlmfix.AvisC(alpha=2.0, beta=0.2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be"),
        ({"layer_share": 1.1}, "layer_share is 1.1; it must be a number from 0 to 1"),
        ({"std_factor": -1}, "std_factor is -1; it must be a number from 0 to 10"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.AvisC(**parameters)
