"""VAR: the vectors of its specification, an independent reference, and models with a naive full matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

import vlmfix
from tests.support import families
from tests.support.methods import ACTING
from vlmfix.methods.attention.var import find_sinks, redistribute, sink_scores
from vlmfix.models.profiles import find_profile

DEFAULTS = {"moved_fraction": 0.4, "min_image_mass": 0.2, "min_non_sink_share": 0.5}


def naive(
    weights: Tensor,
    sinks: Tensor,
    image: Tensor,
    *,
    moved_fraction: float,
    min_image_mass: float,
    min_non_sink_share: float,
) -> Tensor:
    """The formulas of the specification with plain loops over samples, heads, rows and keys in float64."""
    result = weights.double().clone()
    batch, heads, rows, keys = weights.shape
    for b in range(batch):
        vision = [j for j in range(keys) if image[b, j]]
        sink = [j for j in range(keys) if sinks[b, j]]
        visual_sink = [j for j in sink if j in vision]
        target = [j for j in vision if j not in sink]
        if not visual_sink:
            continue
        for h in range(heads):
            for r in range(rows):
                a = [float(x) for x in weights[b, h, r].double()]
                mass = sum(a[j] for j in vision)
                share = sum(a[j] for j in visual_sink) / (mass + 1e-6 * len(vision))
                goal = sum(a[j] for j in target)
                if mass < min_image_mass or share > 1 - min_non_sink_share or goal < 1e-12:
                    continue
                freed = moved_fraction * sum(a[j] for j in sink)
                for j in sink:
                    result[b, h, r, j] = (1 - moved_fraction) * a[j]
                for j in target:
                    result[b, h, r, j] = a[j] + freed * a[j] / goal
    return result


def row(*values: float) -> Tensor:
    return torch.tensor(values)[None, None, None]


IMAGE = torch.tensor([[False, True, True, True, True, False, False]])
SINKS = torch.tensor([[True, True, False, False, False, False, False]])
ROW = (0.50, 0.10, 0.10, 0.06, 0.04, 0.12, 0.08)


@pytest.mark.parametrize(
    ("moved", "expected"),
    [
        (0.4, (0.300000, 0.060000, 0.220000, 0.132000, 0.088000, 0.120000, 0.080000)),
        (0.6, (0.200000, 0.040000, 0.280000, 0.168000, 0.112000, 0.120000, 0.080000)),
    ],
)
def test_vector_of_a_selected_row(moved: float, expected: tuple[float, ...]) -> None:
    edited = redistribute(row(*ROW), SINKS, IMAGE, **DEFAULTS | {"moved_fraction": moved})
    torch.testing.assert_close(edited, row(*expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        (ROW, {"min_non_sink_share": 0.8}),
        ((0.80, 0.05, 0.05, 0.04, 0.02, 0.02, 0.02), {}),
        ((0.30, 0.20, 0.05, 0.05, 0.05, 0.20, 0.15), {}),
    ],
    ids=["stricter share", "little image attention", "caught by a visual sink"],
)
def test_vectors_of_rows_that_stay(values: tuple[float, ...], changes: dict[str, float]) -> None:
    assert torch.equal(redistribute(row(*values), SINKS, IMAGE, **DEFAULTS | changes), row(*values))


@pytest.mark.parametrize(
    ("dimensions", "score", "is_sink"),
    [([3], 25.837649, True), ([9], 12.918824, False), ([3, 9], 25.837649, True), ([0], 0.430628, False)],
)
def test_vectors_of_the_sink_score(dimensions: list[int], score: float, is_sink: bool) -> None:
    x = torch.ones(1, 1, 1024)
    x[..., 3], x[..., 9] = -60, 30
    assert sink_scores(x, dimensions).item() == pytest.approx(score, abs=1e-5)
    assert find_sinks(x, dimensions, sink_threshold=20.0).item() is is_sink


@pytest.mark.parametrize("seed", range(6))
def test_against_the_naive_formulas_on_random_maps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(3, 4, 5, 24, generator=generator)
    sinks = torch.rand(3, 24, generator=generator) < 0.2
    image = torch.rand(3, 24, generator=generator) < 0.5
    if seed == 0:
        image[1] = False
    if seed == 1:
        sinks[1] |= image[1]
    weights = scores.softmax(dim=-1)
    settings = {
        "moved_fraction": float(torch.rand((), generator=generator)),
        "min_image_mass": 0.2,
        "min_non_sink_share": 0.3,
    }
    edited, expected = (
        redistribute(weights, sinks, image, **settings),
        naive(weights, sinks, image, **settings),
    )
    torch.testing.assert_close(edited.double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(edited.sum(dim=-1), weights.sum(dim=-1), atol=1e-6, rtol=0)
    unselected = (expected == weights.double()).all(dim=-1)
    assert unselected.any()
    assert not unselected.all()
    assert torch.equal(edited[unselected], weights[unselected])


def test_an_empty_target_is_skipped_even_when_the_share_allows_it() -> None:
    weights = row(0.5, 0.5, 0.0)
    tokens = torch.tensor([[True, True, False]])
    edited = redistribute(weights, tokens, tokens, **DEFAULTS | {"min_non_sink_share": 0.0})
    assert torch.equal(edited, weights)


def test_layers_and_rows(llava: PreTrainedModel) -> None:
    """Layers 0, 1 and the last one, image rows and system rows are never edited."""
    inputs = families.prompt("llava", llava, (1,))
    seen: dict[int, list[tuple[int, ...]]] = {}

    class Recording(vlmfix.VAR):
        def edit_weights(self, context: Any, layer: int, weights: Tensor) -> Tensor:
            seen.setdefault(layer, []).append(
                (context.step, *context.layout.rows_after_last_image.index.tolist())
            )
            return super().edit_weights(context, layer, weights)

    with Recording(**ACTING["var"])(llava):
        llava.generate(**inputs, max_new_tokens=3, do_sample=False)
    after = (inputs["input_ids"][0] == families.IMAGE_TOKEN).nonzero().max().item() + 1
    rows = tuple(range(after, inputs["input_ids"].shape[1]))
    assert list(seen) == list(range(2, families.LAYERS - 1))
    assert all(calls == [(step, *rows) for step in range(3)] for calls in seen.values())


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_model_against_a_naive_full_matrix(family: str, models: dict[str, PreTrainedModel]) -> None:
    """Prefill logits equal those of eager attention whose full matrix is edited by the naive formulas."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 1))
    settings = ACTING["var"]
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    real = inputs["attention_mask"].bool()
    last_image = torch.tensor([int(mask.nonzero().max()) for mask in image])
    sinks: dict[int, Tensor] = {}

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query @ key.transpose(2, 3) * kwargs["scaling"] + attention_mask
        weights = scores.softmax(dim=-1)
        if 2 <= module.layer_idx < families.LAYERS - 1:
            formula = {
                name: settings[name] for name in ("moved_fraction", "min_image_mass", "min_non_sink_share")
            }
            edited = naive(weights, sinks[module.layer_idx], image, **formula).float()
            for sample, last in enumerate(last_image):
                weights[sample, :, last + 1 :] = edited[sample, :, last + 1 :]
        return (weights @ value).transpose(1, 2).contiguous(), None

    def remember(layer: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            stream = args[0]
            score = stream[..., families.SINK_DIMENSION].abs() / (stream.square().mean(-1) + 1e-6).sqrt()
            sinks[layer] = (score > settings["sink_threshold"]) & real

        return hook

    AttentionInterface.register("naive_var", attention)
    AttentionMaskInterface.register("naive_var", eager_mask)
    decoder = model.get_decoder()
    handles = [layer.register_forward_pre_hook(remember(index)) for index, layer in enumerate(decoder.layers)]
    decoder.set_attn_implementation("naive_var")
    try:
        with torch.no_grad():
            expected = model(**inputs).logits
    finally:
        decoder.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
    with vlmfix.VAR(**settings)(model), torch.no_grad():
        edited = model(**inputs).logits
    with torch.no_grad():
        stock = model(**inputs).logits
    torch.testing.assert_close(edited[real], expected[real], atol=2e-5, rtol=1e-4)
    assert (edited - stock)[real].abs().max() > 1e-2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"moved_fraction": 1.5}, r"moved_fraction is 1.5; it must be a number from 0 to 1"),
        ({"moved_fraction": math.nan}, r"moved_fraction is nan"),
        ({"moved_fraction": "much"}, r"moved_fraction is 'much'"),
        ({"min_image_mass": -0.1}, r"min_image_mass is -0.1"),
        ({"min_non_sink_share": 2}, r"min_non_sink_share is 2"),
        ({"sink_threshold": -1}, r"sink_threshold is -1"),
        ({"sink_dimensions": ()}, r"sink_dimensions is \(\)"),
        ({"sink_dimensions": [-1]}, r"sink_dimensions is \[-1\]"),
        ({"sink_dimensions": 1.5}, r"sink_dimensions is 1.5"),
        ({"first_layer": -1}, r"first_layer is -1"),
        ({"skip_last_layer": "no"}, r"skip_last_layer is 'no'"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.VAR(**parameters)


def test_unknown_checkpoint_names_the_calibration(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="vlmfix calibrate"), vlmfix.VAR()(llava):
        pass


def test_dimension_beyond_the_model(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="from 0 to 31"), vlmfix.VAR(sink_dimensions=(32,))(llava):
        pass


def test_threshold_out_of_reach_warns(llava: PreTrainedModel) -> None:
    with (
        pytest.warns(UserWarning, match=r"hidden size 32 no score exceeds 5\.7"),
        vlmfix.VAR(sink_dimensions=3)(llava),
    ):
        pass


def test_parameters_come_from_the_profile() -> None:
    from transformers import LlavaConfig

    text = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008}
    config = LlavaConfig(text_config=text)
    resolved = vlmfix.VAR().resolve(config, find_profile(config))
    assert resolved.sink_dimensions == (1415, 2533)
    assert resolved.sink_threshold == 20.0
