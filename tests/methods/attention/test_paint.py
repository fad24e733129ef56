"""PAINT: vectors of the specification, and models with naive full matrices of decoder and encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from vlmfix.methods.attention.pai import amplify
from vlmfix.methods.attention.paint import PAINT, largest, outliers
from vlmfix.models.profiles import find_profile

BOOSTS: dict[str, Any] = {"local_boost": 1.5, "summary_boost": 0.8}


def test_scores_vector() -> None:
    scores = torch.tensor([1, -2, 0.5, 0, 3])
    raised = amplify(scores, torch.tensor([0.7, 0.7, 0.4, 0.4, 0]))
    torch.testing.assert_close(raised, torch.tensor([1.7, -0.6, 0.7, 0, 3]))
    before = torch.tensor([0.106233, 0.005289, 0.064434, 0.039081, 0.784963])
    after = torch.tensor([0.187966, 0.018845, 0.069149, 0.034338, 0.689702])
    torch.testing.assert_close(scores.softmax(0), before, atol=1e-6, rtol=0)
    torch.testing.assert_close(raised.softmax(0), after, atol=1e-6, rtol=0)


def test_sets_vector() -> None:
    summary = torch.tensor([0.01, 0.011, 0.012, 0.010, 0.009, 0.2, 0.013, 0.011, 0.5, 0.010, 0.012, 0.011])
    local = torch.tensor([0.3, 0.1, 0.2, 0.05, 0.02, 0.4, 0.01, 0.06, 0.07, 0.03, 0.02, 0.08])
    chosen, above = largest(local, 0.25), outliers(summary, 1.5)
    assert chosen.nonzero().flatten().tolist() == [0, 2, 5]
    assert above.nonzero().flatten().tolist() == [5, 8]
    assert (chosen & ~above).nonzero().flatten().tolist() == [0, 2]
    assert largest(torch.ones(4), 0.5).tolist() == [True, True, False, False]
    assert not largest(local, 0.08).any()
    assert not outliers(torch.ones(4), 0).any()


def encoder_weights(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All weights of each encoder layer, `(tiles, heads, tokens, tokens)`, from the model's own kernel."""
    tower: Any = model.model.vision_tower
    kernel = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = tower(inputs["pixel_values"].flatten(0, -4), output_attentions=True).attentions
    finally:
        tower.set_attn_implementation(kernel)
    return list(found)


def naive_boosts(weights: list[Tensor], tile: int, method: PAINT) -> list[float]:
    """What the specification adds at each patch of a tile, with plain loops."""
    patches = weights[0].shape[-1] - 1

    def by_class(layer: int) -> list[float]:
        return [
            sum(float(head[0, 1 + patch]) for head in weights[layer][tile].double())
            for patch in range(patches)
        ]

    def best(values: list[float], fraction: float) -> set[int]:
        return set(sorted(range(patches), key=lambda patch: -values[patch])[: int(fraction * patches)])

    def quartile(values: list[float], share: float) -> float:
        ordered, place = sorted(values), share * (patches - 1)
        low = int(place)
        return ordered[low] + (place - low) * (ordered[min(low + 1, patches - 1)] - ordered[low])

    received = [
        sum(
            float(weights[0][tile, head, 1 + query, 1 + patch]) / weights[0].shape[1]
            for head in range(weights[0].shape[1])
            for query in range(patches)
        )
        for patch in range(patches)
    ]
    of_summary = by_class(method.summary_vision_layer)
    first, third = quartile(of_summary, 0.25), quartile(of_summary, 0.75)
    fence = third + method.outlier_iqr_factor * (third - first)
    summary = {patch for patch in range(patches) if of_summary[patch] > fence}
    local = best(by_class(method.local_vision_layer), method.local_fraction)
    local = (local | best(received, method.spatial_fraction)) - summary
    assert method.local_boost is not None
    assert method.summary_boost is not None
    return [
        method.local_boost * (patch in local) + method.summary_boost * (patch in summary)
        for patch in range(patches)
    ]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"layers": (1, 3), "spatial_fraction": 0.2, "local_fraction": 0.1, "outlier_iqr_factor": 0.3},
        {"local_vision_layer": -1, "summary_vision_layer": 1, "outlier_iqr_factor": 0.0},
    ],
)
def test_model_against_naive_full_matrices(parameters: dict[str, Any], llava: PreTrainedModel) -> None:
    """The last prompt row and new ones are edited; 2 to 31 of 32 layers are 0 to 4 of 5."""
    inputs = families.prompt("llava", llava, (2, 0, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    method = PAINT(**BOOSTS, **parameters)
    weights = encoder_weights(llava, inputs)
    by_tile = [naive_boosts(weights, tile, method) for tile in range(3)]
    boosts = [by_tile[0] + by_tile[1], [], by_tile[2]]
    assert len({tuple(each) for each in by_tile}) == 3
    last, edited = image.shape[1] - 1, range(*(method.layers or (0, 5)))

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if layer not in edited or position < last:
            return None
        for key, boost in zip(image[sample].nonzero().flatten().tolist(), boosts[sample], strict=True):
            scores[:, key] += boost * scores[:, key].abs()
        return scores.softmax(dim=-1)

    with full_matrices(llava, edit):
        expected = step_logits(llava, inputs)
    before = families.fingerprint(llava)
    with method(llava):
        found = step_logits(llava, inputs)
    assert families.fingerprint(llava) == before
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    stock = step_logits(llava, inputs)
    assert (found - stock)[:, [0, 2]].abs().amax(dim=(0, 2)).min() > 1e-3
    torch.testing.assert_close(found[:, 1], stock[:, 1], atol=2e-5, rtol=1e-4)


def test_tiles_and_their_newlines(models: dict[str, PreTrainedModel]) -> None:
    """Of LLaVA-NeXT, each tile chooses among the patches that the prompt shows, and newlines get nothing."""
    model = models["llava_next"]
    inputs = families.prompt("llava_next", model, (1,))
    method = PAINT(**BOOSTS, local_fraction=1.0, outlier_iqr_factor=100.0)
    seen: list[Tensor] = []

    class Watched(PAINT):
        def key_values(self, context: Any, layout: Any, keys: int) -> tuple[Tensor, ...]:
            values = super().key_values(context, layout, keys)
            seen.append(values[0])
            return values

    with Watched(**method.parameters)(model):
        model.generate(**inputs, max_new_tokens=1)
    image = inputs["input_ids"][0] == families.IMAGE_TOKEN
    given = seen[0][0][image]
    assert int(image.sum()) == 16 + 16 + 4  # a base tile, another one, and a newline after each of its rows
    assert given.nonzero().flatten().tolist() == [
        *range(16),
        *(16 + place for place in range(20) if place % 5 != 4),
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"no local_boost is known for this checkpoint.*look at the length of answers"),
        ({"local_boost": 0.7}, "no summary_boost is known for this checkpoint"),
        ({"local_boost": -1}, "local_boost is -1; it must be a number from 0 to 100"),
        ({"local_fraction": 1.5}, "local_fraction is 1.5; it must be a number from 0 to 1"),
        (
            {**BOOSTS, "summary_vision_layer": 2},
            "summary_vision_layer is 2; the layers of this vision encoder go",
        ),
        ({**BOOSTS, "layers": (2, 6)}, "the layers of this model go from 0 to 4"),
    ],
)
def test_values_that_do_not_fit_are_named(
    parameters: dict[str, Any], message: str, llava: PreTrainedModel
) -> None:
    with pytest.raises(ValueError, match=message), PAINT(**parameters)(llava):
        pass


def test_published_boosts_are_those_of_llava() -> None:
    from transformers import AutoConfig

    text = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008}
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 24}
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision)
    method = PAINT().resolve(config, find_profile(config))
    assert (method.local_boost, method.summary_boost, method.layers) == (0.7, 0.4, (2, 32))
    assert dict(method.encoder_layers) == {0: False, 22: False}


def test_with_another_reader_of_the_encoder(llava: PreTrainedModel) -> None:
    """Both read the same pass; the one that stays goes on alone."""
    inputs = families.prompt("llava", llava, (1, 2))
    with PAINT(**BOOSTS)(llava):
        alone = step_logits(llava, inputs)
        with vlmfix.VisionZip(dominant_tokens=2, contextual_tokens=1)(llava):
            assert (step_logits(llava, inputs) - alone).abs().max() > 1e-3
        assert torch.equal(step_logits(llava, inputs), alone)
    with (
        vlmfix.Registers(neurons=((0, 1),))(llava),
        pytest.raises(vlmfix.UnsupportedError, match="at a time"),
    ):
        PAINT(**BOOSTS)(llava).__enter__()


def test_it_says_why_nothing_was_chosen(llava: PreTrainedModel) -> None:
    method = PAINT(**BOOSTS, local_fraction=0.01, outlier_iqr_factor=100)
    warns = pytest.warns(
        vlmfix.InactiveMethodWarning, match="no patch is local at local_fraction=0.01 and none"
    )
    with warns, method(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


def test_what_it_reports(llava: PreTrainedModel) -> None:
    method = PAINT(**BOOSTS)
    with method(llava):
        llava.generate(**families.prompt("llava", llava, (1, 0, 2)), max_new_tokens=2, num_beams=2)
    details = method.edit_stats().details
    assert (
        details["local tokens"] + details["summary tokens"] >= (4 + 8) / 2
    )  # a quarter of 16 patches an image
    assert details["before"] < (method.edit_stats().size or 0)
