"""AdaptInfer: the vectors of its specification and the pruned model against a masked one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.engine.caches import read_cache
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import PromptLayout
from vlmfix.methods.pruning.adaptinfer import AdaptInfer, image_scores
from vlmfix.methods.pruning.base import mean_tokens
from vlmfix.models.profiles import find_profile

ROWS = torch.tensor(
    [
        [[0.4, 0.1, 0.1, 0.1, 0.3, 0], [0.2, 0.1, 0.3, 0.1, 0.1, 0.2]],
        [[0.1, 0.3, 0.2, 0.2, 0.2, 0], [0.1, 0.1, 0.1, 0.3, 0.3, 0.1]],
    ]
)
IMAGE = torch.tensor([[False, True, True, True, False, False]])
TEXT = torch.tensor([4, 5])


def test_vectors_of_the_scores() -> None:
    every = torch.ones(1, 2, dtype=torch.bool)
    scores = image_scores(ROWS[None], TEXT, every, IMAGE)
    torch.testing.assert_close(scores, torch.tensor([[0, 0.26, 0.27, 0.29, 0, 0]]), atol=1e-6, rtol=0)
    plain = image_scores(ROWS[None], TEXT, every, IMAGE, text_prior=False)
    expected = torch.tensor([[0, 0.583333, 0.75, 0.666667, 0, 0]])
    torch.testing.assert_close(plain, expected, atol=1e-6, rtol=0)


def naive_scores(rows: Tensor, text: list[int], image: list[int], smoothing: float) -> dict[int, float]:
    """Scores of one sample, `rows` (heads, text, keys) of its text rows alone."""
    scores = dict.fromkeys(image, 0.0)
    heads, size = rows.double(), len(text)
    roles = [
        [
            [
                float(head[i, text[j]] + head[j, text[i]]) - (float(head[i, text[i]]) if i == j else 0.0)
                for j in range(size)
            ]
            for i in range(size)
        ]
        for head in heads
    ]
    mean = sum(sum(map(sum, both)) for both in roles) / len(heads) / size**2  # one for all heads
    for head, both in zip(heads, roles, strict=True):
        both = [[(1 - smoothing) * mean + smoothing * value for value in row] for row in both]
        for j in range(size):
            weight = sum(both[i][j] for i in range(size))
            for key in image:
                scores[key] += weight * float(head[j, key])
    return scores


@pytest.mark.parametrize("smoothing", [1.0, 0.3])
def test_scores_against_loops_with_text_of_different_length(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(2, 3, 4, 12, generator=generator).softmax(dim=-1)
    index = torch.tensor([8, 9, 10, 11])
    mask = torch.tensor([[True, True, True, True], [False, False, True, True]])
    image = torch.zeros(2, 12, dtype=torch.bool)
    image[0, 2:7] = image[1, 3:9] = True
    scores = image_scores(weights, index, mask, image, prior_smoothing=smoothing)
    for sample in range(2):
        own = mask[sample].nonzero().squeeze(1)
        places = image[sample].nonzero().squeeze(1).tolist()
        naive = naive_scores(weights[sample][:, own], index[own].tolist(), places, smoothing)
        for place, score in naive.items():
            assert float(scores[sample, place]) == pytest.approx(score, abs=1e-5)
    assert not scores[~image].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"prune_layers": (1, 2), "kept_tokens": (5, 2)},
        {"prune_layers": (0, 3), "kept_ratios": (0.5, 0.3)},
        {"prune_layers": (2,), "kept_tokens": (0,)},
        {"prune_layers": (1,), "kept_tokens": (1000,)},
    ],
    ids=str,
)
def test_equals_masking(settings: dict[str, Any], family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    alive = image.clone()

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer - 1 not in settings["prune_layers"]:
            return None
        stage = settings["prune_layers"].index(layer - 1)
        dropped = torch.zeros_like(image)
        for sample, ids in enumerate(inputs["input_ids"]):
            places = alive[sample].nonzero().squeeze(1).tolist()
            if not places:
                continue
            last = int(image[sample].nonzero().max())
            text = list(range(last + 1, len(ids)))
            scores = naive_scores(seen[layer - 1][sample][:, text], text, places, 1.0)
            count = (
                settings["kept_tokens"][stage]
                if "kept_tokens" in settings
                else max(1, int(len(places) * settings["kept_ratios"][stage]))
            )
            kept = sorted(places, key=lambda place: -scores[place])[:count]
            dropped[sample, [place for place in places if place not in kept]] = True
        alive[dropped] = False
        return dropped, states

    with AdaptInfer(**settings)(model), torch.no_grad():
        pruned = model(**inputs).logits[:, -1]
    torch.testing.assert_close(pruned, masked_logits(model, inputs, enter=enter), atol=2e-5, rtol=1e-4)


def test_shares_are_counted_in_double_precision() -> None:
    """0.7 of 90 tokens are 62.99... in float64, as in the released code, and 63 in float32."""
    image = torch.ones(1, 90, dtype=torch.bool)
    context = DecodeContext(PromptLayout(image, image), num_layers=4)
    vars(context.layout)["after_last_image"] = image
    method = AdaptInfer(prune_layers=(1,), kept_ratios=(0.7,))
    context.state[method, "scores"] = torch.rand(1, 90)
    kept = method.choose(context, 2, torch.zeros(1, 90, 4))
    assert kept is not None
    assert int(kept.sum()) == 62


def test_cache_of_every_layer_and_what_is_reported(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1, 0))
    method = AdaptInfer(prune_layers=(1, 2), kept_tokens=(5, 2))
    with method(llava):
        output = llava.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1] + 2
    # The sample without an image has fewer tokens than the other keeps, so that the other decides.
    assert [read_cache(output).get_seq_length(layer) for layer in range(5)] == [
        length,
        length,
        length - 11,
        length - 14,
        length - 14,
    ]
    edit_stats = method.edit_stats()
    assert edit_stats.rows_skipped == {"no_image": 1}
    assert edit_stats.site_share == 14 / 16
    assert edit_stats.prefill_only
    assert edit_stats.size == mean_tokens(16, 5, (1, 2), (5, 2)) == (16 + 5 + 3 * 2) / 5
    assert edit_stats.details == {
        "size": "image tokens per layer",
        "image tokens": 16,
        "schedule": [
            {"after layer": 1, "image tokens": 5},
            {"after layer": 2, "image tokens": 2},
        ],
    }


@pytest.mark.parametrize(
    ("layers", "kept", "mean"),
    [
        ((1, 10, 20), (290, 72, 18), 128.8125),
        ((1, 10, 20), (133, 27, 3), 64.96875),
        ((1, 10, 20), (80, 24, 2), 48.75),
        ((1, 10, 20), (40, 12, 0), 33.0),
    ],
)
def test_published_means(layers: tuple[int, ...], kept: tuple[int, ...], mean: float) -> None:
    assert mean_tokens(576, 32, layers, kept) == mean


def test_published_means_of_larger_and_of_relative_schedules() -> None:
    for kept, at_10, at_11 in (((300, 94, 30), 120.4, 127.15), ((148, 40, 5), 60.2, 63.775)):
        assert mean_tokens(576, 40, (1, 10, 20), kept) == pytest.approx(at_10)
        assert mean_tokens(576, 40, (1, 11, 21), kept) == pytest.approx(at_11)
    for ratios, share in (
        ((0.17, 0.6, 0.3), 10.0907),
        ((0.5, 0.6, 0.3), 29.6786),
        ((0.7, 0.9, 0.3), 51.0750),
    ):
        kept = (100 * ratios[0], 100 * ratios[0] * ratios[1], 100 * ratios[0] * ratios[1] * ratios[2])
        assert mean_tokens(100, 28, (0, 9, 19), kept) == pytest.approx(share, abs=1e-4)


def test_budgets_of_the_checkpoint() -> None:
    text = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "model_type": "llama"}
    config = AutoConfig.for_model("llava", text_config=text)
    profile = find_profile(config)
    assert AdaptInfer().resolve(config, profile).kept_tokens == (133, 27, 3)
    assert AdaptInfer(budget=32).resolve(config, profile).kept_tokens == (40, 12, 0)
    with pytest.raises(ValueError, match=r"no schedule of budget '65' .*known: 64, 128, 48, 32"):
        AdaptInfer(budget="65").resolve(config, profile)


def test_refusals(llava: PreTrainedModel) -> None:
    for settings, message in (
        ({"prune_layers": (1,)}, "needs prune_layers and either"),
        ({"prune_layers": (1,), "kept_tokens": (3, 2)}, "one value for each"),
        ({"prune_layers": (1,), "kept_tokens": (3,), "kept_ratios": (0.5,)}, "both"),
        ({"prune_layers": (1,), "kept_tokens": (3,), "budget": 64}, "give one of them"),
        ({"prune_layers": (1,), "kept_tokens": (-3,)}, "0 or more"),
        ({"prune_layers": (2, 1), "kept_tokens": (3, 2)}, "ascending"),
        ({"prune_layers": (1,), "kept_ratios": (1.5,)}, "kept_ratios is 1.5"),
        ({"position_scheme": "none"}, "'original', 'renumber'"),
    ):
        with pytest.raises(ValueError, match=message):
            AdaptInfer(**settings)
    with pytest.raises(ValueError, match="calibrate --model MODEL"), AdaptInfer()(llava):
        pass
    with pytest.raises(ValueError, match="0 to 3"), AdaptInfer(prune_layers=(4,), kept_tokens=(1,))(llava):
        pass


def test_one_pruning_at_a_time(llava: PreTrainedModel) -> None:
    with (
        AdaptInfer(prune_layers=(1,), kept_tokens=(1,))(llava),
        pytest.raises(vlmfix.UnsupportedError, match="AdaptInfer drops image tokens of this model already"),
        vlmfix.FastV()(llava),
    ):
        pass
