"""A slow reference of merging in the vision encoder: pictures one by one, tokens in lists, float64."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits

Group = list[int]
Run = Callable[[Any, Tensor, list[Group]], tuple[Tensor, list[Group]]]
"""From a layer, its tokens and the tokens of the embeddings that each is made of, to those after it."""


@functools.cache
def model() -> PreTrainedModel:
    """A random LLaVA with four layers in its vision encoder, three of which run for the projector."""
    torch.manual_seed(0)
    config = families.FAMILIES["llava"].config
    config = {**config, "vision_config": {**config["vision_config"], "num_hidden_layers": 4}}
    built = AutoModelForImageTextToText.from_config(AutoConfig.for_model("llava", **config)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        built.model.multi_modal_projector.linear_2.weight.mul_(20.0)
    return built


def projections(layer: Any, states: Tensor) -> list[Tensor]:
    """Queries, keys and values `(tokens, heads, head_dim)` of states `(tokens, width)`."""
    attention, normed = layer.self_attn, layer.layer_norm1(states)
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [part(normed).view(len(states), attention.num_heads, -1) for part in parts]


def attention(query: Tensor, key: Tensor, sizes: list[int], scale: float) -> Tensor:
    """Weights `(tokens, tokens)` of one head, in proportion to the sizes of the keys."""
    scores = query @ key.T * scale + torch.tensor(sizes).double().log()
    return scores.exp() / scores.exp().sum(dim=1, keepdim=True)


def cosine(first: Tensor, second: Tensor) -> float:
    """Of two vectors."""
    return float(first @ second / (first.norm() * second.norm()))


def reference(stock: PreTrainedModel, inputs: dict[str, Tensor], run: Run, first: int) -> Tensor:
    """Logits of the last position, `(batch, vocabulary)`, where each picture is encoded by `run` from the
    layer `first` to the last that the projector reads, and each group is one token."""
    tower: Any = copy.deepcopy(stock.base_model.vision_tower).double()
    features, places = [], []
    for pixels in inputs["pixel_values"]:
        states = tower.pre_layrnorm(tower.embeddings(pixels[None].double()))[0]
        groups: list[Group] = [[place] for place in range(len(states))]
        for index, layer in enumerate(tower.encoder.layers[:-1]):
            if index < first:
                states = layer(states[None], None)[0]
            else:
                states, groups = run(layer, states, groups)
        whole = torch.empty(sum(map(len, groups)), states.shape[1]).double()
        for state, group in zip(states, groups, strict=True):
            whole[group] = state
        features.append(stock.base_model.multi_modal_projector(whole[1:].float()))
        firsts = {min(group) - 1 for group in groups}
        places.append(torch.tensor([place in firsts for place in range(len(whole) - 1)]))
    image = inputs["input_ids"] == families.IMAGE_TOKEN

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != 0:
            return None
        states, dropped = states.clone(), torch.zeros_like(image)
        states[image] = torch.cat(features)
        dropped[image] = ~torch.cat(places)
        return dropped, states

    return masked_logits(stock, inputs, enter=enter)
