"""What is kept of the vision encoder, against attention maps and features computed apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from tests.support import families
from vlmfix.engine.vision_attention import EncoderTap
from vlmfix.errors import UnsupportedError


def encode(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[EncoderTap, list[Tensor]]:
    """What a tap saw, and the features, which it must leave as they are."""
    names = ("pixel_values", "image_sizes", "image_grid_thw")
    given = {name: inputs[name] for name in names if name in inputs}
    tap = EncoderTap(model)
    with torch.no_grad():
        stock = model.model.get_image_features(**given, return_dict=True).pooler_output
        tap.install()
        seen = model.model.get_image_features(**given, return_dict=True).pooler_output
    images = tap.images
    tap.remove()
    tap.images = images
    assert all(torch.equal(one, other) for one, other in zip(stock, seen, strict=True))
    return tap, list(stock)


@pytest.mark.parametrize("size", [(50, 56), (28, 56), (56, 20)])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_features_stand_where_the_prompt_shows_them(
    family: str, size: tuple[int, int], models: dict[str, PreTrainedModel]
) -> None:
    """A tile of 4 x 4 patches; the padding of an oblong image is cut off."""
    model = models[family]
    inputs = families.FAMILIES[family].images(2, torch.Generator().manual_seed(0))
    if "image_sizes" in inputs:
        inputs["image_sizes"] = torch.tensor([size, (50, 56)])
    tap, features = encode(model, inputs)
    for image, tokens in zip(tap.images, features, strict=True):
        assert image.count == len(tokens)
        places = torch.cat([block.places for block in image.blocks])
        shown = places[places >= 0].tolist()
        assert len(set(shown)) == len(shown)
        for block in image.blocks:
            assert block.features is not None
            own = block.places >= 0
            with torch.no_grad():
                torch.testing.assert_close(tap.project(block.features[own]), tokens[block.places[own]])
        if family == "llava_next":
            newlines = [place for place in range(len(tokens)) if place not in shown]
            assert torch.equal(tokens[newlines], model.model.image_newline.expand(len(newlines), -1))


def test_attention_of_the_class_token(llava: PreTrainedModel) -> None:
    inputs = families.FAMILIES["llava"].images(2, torch.Generator().manual_seed(0))
    tap, _ = encode(llava, inputs)
    index, tower = llava.config.vision_feature_layer, llava.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        output = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
        layer = tower.encoder.layers[index]
        keys = layer.self_attn.k_proj(layer.layer_norm1(output.hidden_states[index - 1]))
    tower.set_attn_implementation("sdpa")
    for number, image in enumerate(tap.images):
        (block,) = image.blocks
        torch.testing.assert_close(block.attention, output.attentions[index][number, :, 0, 1:])
        heads = keys[number, 1:].view(len(block.keys), layer.self_attn.num_heads, -1)
        torch.testing.assert_close(block.keys, heads.mean(dim=1))
        assert block.class_feature is not None
        torch.testing.assert_close(block.class_feature, output.hidden_states[index][number, 0])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_mean_attention_without_a_class_token(family: str, models: dict[str, PreTrainedModel]) -> None:
    """Of the last layer but one, or in Qwen2.5-VL the last one with attention to the whole image."""
    model = models[family]
    inputs = families.FAMILIES[family].images(3, torch.Generator().manual_seed(0))
    tap, features = encode(model, inputs)
    visual = model.model.visual
    block = visual.blocks[1 if family == "qwen2_5_vl" else 0].attn
    maps: list[Tensor] = []
    raw: list[Tensor] = []

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        weights = (query @ key.transpose(2, 3) * kwargs["scaling"]).softmax(dim=-1)
        if module is block:
            maps.append(weights[0])
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("spy", attention)
    AttentionMaskInterface.register("spy", eager_mask)
    visual.set_attn_implementation("spy")
    handle = block.qkv.register_forward_hook(lambda module, args, output: raw.append(output))
    with torch.no_grad():
        model.model.get_image_features(**inputs, return_dict=True)
    handle.remove()
    visual.set_attn_implementation("sdpa")
    keys = raw[0].view(len(raw[0]), 3, block.num_heads, -1)[:, 1].mean(dim=1)
    order = window_order(model, inputs["image_grid_thw"]) if family == "qwen2_5_vl" else None
    start = 0
    for image, tokens, weights in zip(tap.images, features, maps, strict=True):
        (seen,) = image.blocks
        assert seen.places.tolist() == list(range(len(tokens)))
        own = torch.arange(len(tokens)) if order is None else order[start // 4 : start // 4 + len(tokens)]
        own = own - own.min()
        received = weights.mean(dim=1).unflatten(1, (-1, 4)).mean(dim=2)
        torch.testing.assert_close(seen.attention[:, own], received)
        mean = keys[start : start + 4 * len(tokens)].unflatten(0, (-1, 4)).mean(dim=1)
        torch.testing.assert_close(seen.keys[own], mean)
        start += 4 * len(tokens)


def window_order(model: PreTrainedModel, grids: Tensor) -> Tensor:
    """Tokens in the order in which the encoder of Qwen2.5-VL reads them: window after window."""
    side = model.config.vision_config.window_size // model.config.vision_config.patch_size // 2
    order, start = [], 0
    for _, height, width in grids.tolist():
        rows, columns = height // 2, width // 2
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                order += [
                    start + row * columns + column
                    for row in range(top, min(top + side, rows))
                    for column in range(left, min(left + side, columns))
                ]
        start += rows * columns
    return torch.tensor(order)


@pytest.mark.parametrize("family", ["llava_onevision", "internvl"])
def test_other_encoders_are_refused(family: str, models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(UnsupportedError, match=r"the vision encoder of .* is not read; use a model"):
        EncoderTap(models[family])
