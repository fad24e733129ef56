"""DAMRO: the vector of its specification, and its branch read alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import WAY_NAMES, WAYS, Inputs, check_branches
from tests.support.methods import values
from vlmfix.engine.vision_attention import EncodedBlock
from vlmfix.methods.logits.damro import full_width_scores, outliers

QUERY = torch.tensor([1.0, -1.0, 0.5, 0.0])
KEYS = torch.tensor(
    [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0, 1, 0, 0], [1, -1, 1, 0], [0.5, 0, 1.2, 2.0]], dtype=torch.float32
)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_vector(heads: int) -> None:
    """In any number of heads, whose weights are those of softmaxes over all tokens."""
    query, keys = QUERY.view(heads, -1), KEYS.view(len(KEYS), heads, -1)
    attention = torch.einsum("hd,khd->hk", query, keys).softmax(dim=-1)[:, 1:]
    scores = full_width_scores(attention)
    torch.testing.assert_close(scores - scores[0], (KEYS[1:] @ QUERY) - 1.0)
    block = EncodedBlock(torch.tensor([5, -1, 0, 7]), attention, KEYS[1:])
    assert outliers(block, 2).tolist() == [0, 7]  # patches 2 and 3, by their places
    assert outliers(block, 9).tolist() == [0, 7, 5]  # patch 1 is not shown


def scores_of(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Of the patches of images `(tiles, 3, height, width)`, `(tiles, patches)`, by whole projections."""
    index, tower = model.config.vision_feature_layer, model.model.vision_tower
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states[index - 1]
        layer = tower.encoder.layers[index]
        normed = layer.layer_norm1(states)
        query, key = layer.self_attn.q_proj(normed[:, :1]), layer.self_attn.k_proj(normed[:, 1:])
    return (query @ key.mT)[:, 0] / key.shape[-1] ** 0.5


@pytest.mark.parametrize(
    ("family", "way", "fused"),
    [
        pytest.param("llava", *WAYS[2], id=WAY_NAMES[2]),
        pytest.param("llava", *WAYS[3], id=WAY_NAMES[3]),
        pytest.param("llava_next", *WAYS[0], id="tiles"),
    ],
)
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, (1, 1) if way else (1, 2))
    method = vlmfix.DAMRO(top_k=3, beta=0.001, fused=fused)

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        ids = [*single["input_ids"][0].tolist(), *new]
        places = [place for place, token in enumerate(ids) if token == families.IMAGE_TOKEN]
        with torch.no_grad():
            embeddings = model.get_input_embeddings()(torch.tensor(ids))
            names = [name for name in families.IMAGE_INPUTS if name in single]
            encoded = model.model.get_image_features(**{name: single[name] for name in names})
            embeddings[places] = torch.cat(list(encoded.pooler_output))
        columns: list[int] = []
        images = single["pixel_values"].shape[0]
        length = len(places) // images
        for image in range(images):
            own = places[image * length : (image + 1) * length]
            tiles = single["pixel_values"][image].view(-1, 3, 56, 56)
            for tile, scores in enumerate(scores_of(model, tiles)):
                order = sorted(range(len(scores)), key=lambda patch: -float(scores[patch]))
                shown = [own[place] for patch in order if (place := place_of(family, tile, patch)) >= 0]
                columns += shown[:3]
        kept: list[int] = []
        for place, token in enumerate(ids):
            if token != families.IMAGE_TOKEN:
                kept.append(place)
            elif ids[place - 1] != families.IMAGE_TOKEN:
                end = place + length
                kept += [each for each in columns if place <= each < end]
        with torch.no_grad():
            states = model.get_decoder()(inputs_embeds=embeddings[None, kept], use_cache=False)
            return [model.get_output_embeddings()(states.last_hidden_state[0, -1]).float()]

    check_branches(model, family, method, inputs, alone, steps=3, **way)


def place_of(family: str, tile: int, patch: int) -> int:
    """Of a patch among the tokens of its image; -1: it is not shown. Images of LLaVA-NeXT here are one tile,
    50 high and 56 wide, after the whole image, with a newline after each of its rows."""
    if family == "llava" or tile == 0:
        return patch
    row, column = divmod(patch, 4)
    return 16 + row * 5 + column


def test_it_reads_the_encoder_beside_a_pruning_that_does(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 2))
    method = vlmfix.DAMRO(top_k=3, beta=0)
    zipped = vlmfix.VisionZip(dominant_tokens=2, contextual_tokens=1)
    with zipped(llava):
        alone = values(llava, inputs, max_new_tokens=2)
    with method(llava):
        with zipped(llava), vlmfix.FADE(alpha=0.1)(llava):
            both = values(llava, inputs, max_new_tokens=2)
        values(llava, inputs, max_new_tokens=1)  # it still sees the encoder
    assert (both - alone).abs().max() > 1e-3
    size = method.edit_stats().size
    assert size == pytest.approx(3 / 16)


def test_an_encoder_without_a_class_token_leaves_nothing_behind(models: dict[str, PreTrainedModel]) -> None:
    model = models["qwen2_5_vl"]
    before = families.fingerprint(model)
    with pytest.raises(vlmfix.UnsupportedError, match="goes by the attention of a class token"):
        vlmfix.DAMRO()(model).__enter__()
    with vlmfix.DAMRO(alpha=0, beta=0.5)(model):  # the cut alone needs no encoder
        values(model, families.prompt("qwen2_5_vl", model), max_new_tokens=1)
    assert families.fingerprint(model) == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number from 1 on"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.DAMRO(**parameters)
