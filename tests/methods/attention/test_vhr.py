"""VHR: the formulas on the spec's vectors, and the whole method against a naive two-pass reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from vlmfix.engine.caches import read_cache
from vlmfix.engine.kernels import ATTRIBUTE
from vlmfix.methods.attention.vhr import head_divergence, select_heads

WITH_IMAGE = torch.tensor([[1, 0], [0, 2], [3, 4], [0.5, 0.5], [2, 2], [0, 0]])
WITHOUT_IMAGE = torch.tensor([[0, 0], [0, 1], [0, 0], [0.5, 0.5], [-4, -6], [0.3, -0.4]])


def indices(mask: Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()


def test_divergence() -> None:
    divergence = head_divergence(WITH_IMAGE, WITHOUT_IMAGE)
    torch.testing.assert_close(divergence, torch.tensor([1, 1, 5, 0, 10, 0.5]))
    assert float(divergence.topk(2).values.sum()) == 15.0


def test_selection_with_and_without_the_filter() -> None:
    divergence = head_divergence(WITH_IMAGE, WITHOUT_IMAGE)
    energy = WITHOUT_IMAGE.square().sum(dim=-1)
    torch.testing.assert_close(energy, torch.tensor([0, 1, 0, 0.5, 52, 0.25]))
    assert indices(select_heads(divergence, energy)) == [0, 1, 2]
    assert indices(select_heads(divergence, energy, outlier_filter=False)) == [2, 4]


def test_an_outlier_in_one_measure_alone_stays() -> None:
    divergence = torch.tensor([1.0, 2, 3, 9, 2, 1, 8, 2])
    energy = torch.tensor([1.0, 1, 1, 10, 1, 1, 1, 1])
    assert indices(select_heads(divergence, energy)) == [2, 6]
    assert indices(select_heads(divergence, torch.ones(8))) == [2, 3, 6]


def test_ties_at_the_median_and_zeros_are_not_selected() -> None:
    assert not select_heads(torch.zeros(2, 6), torch.ones(2, 6)).any()
    assert indices(select_heads(torch.tensor([1.0, 1, 1, 2]), torch.zeros(4))) == [3]


def naive_tokens(model: PreTrainedModel, inputs: dict[str, Tensor], method: vlmfix.VHR, steps: int) -> Tensor:
    """Greedy tokens of one sample: two stock passes in lockstep, and heads scaled by hooks on o_proj."""
    config = model.config.get_text_config()
    layers = range(config.num_hidden_layers)
    assert method.num_last_layers is not None
    reinforced = {layer for layer in layers if layer >= len(layers) - method.num_last_layers}
    reinforced |= set(method.extra_layers or ())
    text_ids = inputs["input_ids"][inputs["input_ids"] != families.IMAGE_TOKEN][None]
    chosen: dict[int, Tensor] = {}
    outputs: dict[tuple[int, str], Tensor] = {}
    stream = "text"

    def hook(layer: int) -> Any:
        def before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            heads = args[0].unflatten(-1, (config.num_attention_heads, -1))
            if stream == "choose":
                outputs[layer, "image"] = heads[0, -1]
            if stream == "text":
                outputs[layer, "text"] = heads[0, -1]
            if layer in chosen and not (stream == "text" and not method.reinforce_text_stream):
                factor = torch.where(chosen[layer], method.head_scale, 1.0)[:, None]
                if method.scale_positions == "all":
                    heads = heads * factor
                else:
                    prompt = inputs["input_ids"].shape[1] if stream != "text" else heads.shape[1]
                    heads = torch.cat([heads[:, : prompt - 1], heads[:, prompt - 1 :] * factor], dim=1)
            return (heads.flatten(-2),)

        return before

    decoder = model.get_decoder()
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(hook(index))
        for index, layer in enumerate(decoder.layers)
    ]
    try:
        with torch.no_grad():
            for layer in sorted(reinforced):  # once a layer, the earlier ones reinforced already
                stream = "text"
                model(input_ids=text_ids, attention_mask=torch.ones_like(text_ids), position_ids=None)
                stream = "choose"
                model(**inputs)
                image, text = outputs[layer, "image"], outputs[layer, "text"]
                divergence = torch.tensor([float((a - b).norm()) for a, b in zip(image, text, strict=True)])
                energy = torch.tensor([float(b @ b) for b in text])
                if method.outlier_filter:
                    bad = (divergence > divergence.mean() + divergence.std()) & (
                        energy > energy.mean() + energy.std()
                    )
                    divergence[bad] = 0
                median = divergence.sort().values[(len(divergence) - 1) // 2]
                chosen[layer] = divergence > median
            stream = "generate"
            output = model.generate(**inputs, max_new_tokens=steps, do_sample=False, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return output


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale_positions": "last"},
        {"reinforce_text_stream": False},
        {"outlier_filter": False, "head_scale": 0.5},
        {"num_last_layers": 5, "head_scale": 3.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_against_two_passes_in_lockstep(
    name: str, settings: dict[str, Any], models: dict[str, PreTrainedModel]
) -> None:
    model = models[name]
    method = vlmfix.VHR(**{"num_last_layers": 2, "extra_layers": (1,), **settings})
    for seed in range(3):
        inputs = families.prompt(name, model, seed=seed)
        with method(model):
            tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert torch.equal(tokens, naive_tokens(model, inputs, method, 6))


def test_the_companion_leaves_the_cache(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2))
    with vlmfix.VHR()(model), torch.no_grad():
        output = model(**inputs, use_cache=True, output_hidden_states=True)
        attachment = vars(model.get_decoder())[ATTRIBUTE]
        assert attachment.call.context.auxiliary_prompts == {}
    length = inputs["input_ids"].shape[1]
    assert read_cache(output).get_seq_length() == length
    assert read_cache(output).get_seq_length(4) == length
    assert output.logits.shape[1] == length
    assert all(states.shape[1] == length for states in output.hidden_states)


def test_default_layers(models: dict[str, PreTrainedModel]) -> None:
    resolved = vlmfix.VHR().resolve(models["llava"].config, None)
    assert (resolved.num_last_layers, resolved.extra_layers) == (2, ())
    with pytest.raises(ValueError, match="this model has 5 layers"):
        vlmfix.VHR(num_last_layers=6).resolve(models["llava"].config, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_scale": -1}, "head_scale is -1; it must be a number from 0 to 10"),
        ({"divergence": "cosine"}, "one of 'euclidean', 'squared'"),
        ({"scale_positions": "first"}, "one of 'all', 'last'"),
        ({"num_last_layers": 2.5}, "number of layers"),
        ({"extra_layers": (-1,)}, "layer indices"),
        ({"outlier_filter": 1}, "true or false"),
    ],
)
def test_refused_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.VHR(**settings)


def test_activity_counts_the_selected_heads(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 0))
    method = vlmfix.VHR(num_last_layers=2)
    with method(llava):
        llava.generate(**inputs, max_new_tokens=4, do_sample=False)
    edit_stats = method.edit_stats()
    assert edit_stats.rows == 2
    assert edit_stats.rows_touched == 1
    assert edit_stats.rows_skipped == {"no_image": 1}
    assert edit_stats.steps == 8
    assert edit_stats.steps_edited == 4
    assert edit_stats.layers_edited == [3, 4]
    assert edit_stats.head_share is not None
    assert 0 < edit_stats.head_share <= 0.5
    assert edit_stats.size is not None
    assert edit_stats.size > 0
