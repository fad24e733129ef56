"""ToMe: the vectors of its specification, a slow reference, and what merging refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families, merging
from vlmfix.methods.vision.merging import Tokens, first_of_group
from vlmfix.methods.vision.tome import ToMe, similar_pairs

METRIC = torch.tensor([[1, 1], [1, 0], [0.9, 0.2], [0, 1], [0.1, 1], [1, 0.8], [0.7, 0.7]])


def test_vector_of_the_merge() -> None:
    tokens = Tokens.unmerged(torch.arange(7.0)[None, :, None])
    merge = similar_pairs(METRIC[None], 2, first_is_class=True)
    merged = merge.applied(tokens, tokens.sizes)
    assert merged.states.flatten().tolist() == [0, 2, 1, 3.5, 5.5]
    assert merged.sizes.tolist() == [[1, 1, 1, 2, 2]]
    unmerged = merged.states[0, merged.sources[0], 0]
    assert unmerged.tolist() == [0, 1, 2, 3.5, 3.5, 5.5, 5.5]
    assert first_of_group(merged.sources).tolist() == [[0, 1, 2, 3, 3, 5, 5]]


def test_vector_of_proportional_attention() -> None:
    """Of the reference to which the encoder is compared."""
    scores = torch.tensor([[0, 0.5, 1, 0.2, 0.1, 0.3]]).double()
    expected = torch.tensor([[0.079342, 0.130813, 0.215674, 0.096909, 0.263060, 0.214201]]).double()
    weights = merging.attention(torch.ones(1, 1).double(), scores.T, [1, 1, 1, 1, 3, 2], 1.0)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_all_but_the_class_token_may_merge() -> None:
    for tokens, first_is_class in ((17, True), (16, True), (16, False), (2, True)):
        metric = torch.randn(3, tokens, 4, generator=torch.Generator().manual_seed(0))
        merge = similar_pairs(metric, 99, first_is_class=first_is_class)
        assert merge.size == tokens - (tokens - first_is_class) // 2
        if first_is_class:
            assert (merge.target == merge.target[:, :1]).sum(dim=1).tolist() == [1, 1, 1]


def by_hand(layer: Any, states: Tensor, groups: list[merging.Group], merged: int) -> Any:
    query, key, value = merging.projections(layer, states)
    sizes = [len(group) for group in groups]
    heads = [
        merging.attention(query[:, head], key[:, head], sizes, layer.self_attn.scale) @ value[:, head]
        for head in range(query.shape[1])
    ]
    states = states + layer.self_attn.out_proj(torch.cat(heads, dim=1))
    mean = key.mean(dim=1)
    nearest = {
        a: max((merging.cosine(mean[a], mean[b]), -b) for b in range(1, len(states), 2))
        for a in range(2, len(states), 2)
    }
    leaving = sorted(nearest, key=lambda a: -nearest[a][0])[:merged]
    into = {a: -nearest[a][1] for a in leaving}
    new = []
    for place in [*(a for a in range(0, len(states), 2) if a not in leaving), *range(1, len(states), 2)]:
        members = [place, *(a for a in leaving if into[a] == place)]
        total = sum(sizes[each] for each in members)
        mean_state = torch.stack([sizes[each] * states[each] for each in members]).sum(dim=0) / total
        new.append((mean_state, [patch for each in members for patch in groups[each]]))
    states = torch.stack([state for state, _ in new])
    return states + layer.mlp(layer.layer_norm2(states)), [group for _, group in new]


@pytest.mark.parametrize(("first", "merged"), [(0, 3), (1, 5)])
def test_equals_the_slow_reference(first: int, merged: int) -> None:
    model = merging.model()
    inputs = families.prompt("llava", model, (2, 1, 0))
    method = ToMe(merged_per_layer=merged, first_layer=first)
    before = families.fingerprint(model)
    with torch.no_grad():
        with method(model):
            found = model(**inputs).logits[:, -1]
        assert families.fingerprint(model) == before
        expected = merging.reference(model, inputs, lambda *args: by_hand(*args, merged), first)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (model(**inputs).logits[:2, -1] - expected[:2]).abs().max() > 1e-2
    stats = method.edit_stats()
    assert stats.details["schedule"] == [
        {"before layer": 0, "image tokens": 1.5 * (16 - merged * (3 - first))}
    ]
    assert stats.details["largest group"] >= 2


def test_sizes_count_only_if_asked() -> None:
    model = merging.model()
    inputs = families.prompt("llava", model, (1,))
    found = []
    for flag in (True, False):
        with ToMe(merged_per_layer=4, proportional_attention=flag)(model), torch.no_grad():
            found.append(model(**inputs).logits[:, -1])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_prompt_that_ends_with_its_image_keeps_its_last_token(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    end = int((inputs["input_ids"][0] == families.IMAGE_TOKEN).nonzero().max()) + 1
    inputs |= {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
    method = ToMe()
    with method(llava):
        tokens = llava.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokens.shape[1] == end + 2
    [schedule] = method.edit_stats().details["schedule"]
    assert schedule["image tokens"] in (8, 9)


def test_pictures_of_a_branch_are_not_those_of_the_prompt() -> None:
    model = merging.model()
    inputs = families.prompt("llava", model, (1, 2))
    asked: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    with ToMe(merged_per_layer=4)(model):
        alone = model.generate(**inputs, **asked)
        with vlmfix.VCD(alpha=1e-6, beta=0)(model):
            assert torch.equal(model.generate(**inputs, **asked), alone)


def test_layers_that_accelerate_wraps() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = copy.deepcopy(merging.model())
    inputs = families.prompt("llava", model, (1,))
    layers = model.base_model.vision_tower.encoder.layers
    calls = []

    class Noting(hooks.ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(module)
            return args, kwargs

    method = ToMe(merged_per_layer=4)
    with torch.no_grad():
        with method(model):
            expected = model(**inputs).logits
        for layer in layers:
            hooks.add_hook_to_module(layer, Noting())
        stock = model(**inputs).logits
        calls.clear()
        with method(model):
            assert torch.equal(model(**inputs).logits, expected)
        assert calls == list(layers)
        assert torch.equal(model(**inputs).logits, stock)
        assert not torch.equal(stock, expected)


def test_what_does_not_fit_the_model_is_refused() -> None:
    model = merging.model()
    before = families.fingerprint(model)
    with pytest.raises(ValueError, match=r"merged_per_layer is 6, in 3 layers, .* 16 patches; .* 5 or less"):
        ToMe(merged_per_layer=6)(model).__enter__()
    with pytest.raises(ValueError, match=r"first_layer is 3; .* reads what leaves layer 2"):
        ToMe(first_layer=3)(model).__enter__()
    inputs = families.prompt("llava", model, (1,))
    with torch.no_grad():
        features = model.base_model.get_image_features(inputs.pop("pixel_values")).pooler_output[0]
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        embeddings[inputs["input_ids"] == families.IMAGE_TOKEN] = features
        with (
            ToMe(merged_per_layer=4)(model),
            pytest.raises(vlmfix.UnsupportedError, match="did not go through the vision encoder"),
        ):
            model.generate(**inputs, inputs_embeds=embeddings, max_new_tokens=1)
    assert families.fingerprint(model) == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"merged_per_layer": -1}, "merged_per_layer is -1; it must be a whole number from 0 on"),
        ({"first_layer": 0.5}, "first_layer is 0.5; it must be a whole number from 0 on"),
        ({"proportional_attention": 1}, "proportional_attention is 1; it must be true or false"),
        ({"position_scheme": "none"}, "position_scheme is 'none'"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToMe(**parameters)
