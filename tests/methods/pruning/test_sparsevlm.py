"""SparseVLM: the vectors of its specification, independent references, and the pruned model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.base import mean_tokens
from vlmfix.methods.pruning.sparsevlm import (
    SparseVLM,
    adaptive_count,
    choose_raters,
    density_peaks,
    gravity,
    gravity_free,
    rater_scores,
    recycle,
    text_relevance,
)

POINTS = [0.0, 1, 1.6, 6, 6.4, 7.1, 9]


def mask(*members: int, length: int) -> Tensor:
    return torch.tensor([[index in members for index in range(length)]])


def naive_relevance(embeddings: Tensor, text: Tensor, image: Tensor) -> Tensor:
    """The formula of the specification with plain loops in float64."""
    result = torch.zeros(text.shape, dtype=torch.float64)
    for b, rows in enumerate(embeddings.double().tolist()):
        words = text[b].nonzero().flatten().tolist()
        patches = image[b].nonzero().flatten().tolist()
        for v in patches:
            powers = [math.exp(sum(x * y for x, y in zip(rows[v], rows[i], strict=True))) for i in words]
            for i, power in zip(words, powers, strict=True):
                result[b, i] += power / sum(powers) / len(patches)
    return result


def naive_peaks(points: list[list[float]], clusters: int, neighbours: int) -> dict[int, list[int]]:
    """Members of each centre, with plain loops in float64."""
    number = len(points)
    distances = [[math.dist(a, b) / math.sqrt(len(a)) for b in points] for a in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / neighbours) for row in distances]
    highest = max(map(max, distances))
    ranks = sorted(range(number), key=lambda i: (-density[i], i))
    separation = [highest] * number
    for place, i in enumerate(ranks):
        separation[i] = min((distances[i][j] for j in ranks[:place]), default=highest)
    centres = sorted(range(number), key=lambda i: (-density[i] * separation[i], i))[:clusters]
    members: dict[int, list[int]] = {centre: [] for centre in centres}
    for i in range(number):
        members[i if i in centres else min(centres, key=lambda c: distances[i][c])].append(i)
    return members


def test_vector_of_the_raters() -> None:
    embeddings = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [2, 0], [0, 0.5], [1, 1]]])
    image, text = mask(0, 1, 2, length=6), mask(3, 4, 5, length=6)
    relevance = text_relevance(embeddings, text, image)
    expected = torch.tensor([[0, 0, 0, 0.433794, 0.165865, 0.400342]])
    torch.testing.assert_close(relevance, expected, atol=1e-6, rtol=0)
    assert torch.equal(choose_raters(relevance, text), mask(3, 5, length=6))


@pytest.mark.parametrize("seed", range(4))
def test_relevance_against_the_naive_formula(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(3, 14, 4, generator=generator)
    kind = torch.randint(0, 3, (3, 14), generator=generator)
    kind[2] = 0
    text, image = kind == 1, kind == 2
    relevance = text_relevance(embeddings, text, image)
    torch.testing.assert_close(
        relevance.double(), naive_relevance(embeddings, text, image), atol=1e-6, rtol=0
    )
    raters = choose_raters(relevance, text)
    for b in range(3):
        mean = relevance[b, text[b]].mean()
        assert torch.equal(raters[b], text[b] & (relevance[b] > mean))


def test_where_no_word_stands_out_all_are_raters() -> None:
    text = mask(2, 3, length=4)
    relevance = torch.tensor([[0, 0, 0.5, 0.5]])
    assert torch.equal(choose_raters(relevance, text), text)


@pytest.mark.parametrize("seed", range(3))
def test_scores_against_the_naive_means(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(2, 3, 4, 9, generator=generator)
    raters = torch.tensor([[True, False, True, True], [False, True, False, False]])
    expected = torch.zeros(2, 9, dtype=torch.float64)
    for b in range(2):
        rows = [r for r in range(4) if raters[b, r]]
        for j in range(9):
            expected[b, j] = sum(float(weights[b, h, r, j]) for h in range(3) for r in rows) / 3 / len(rows)
    torch.testing.assert_close(rater_scores(weights, raters).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("scale", "bias", "count"), [(13.5, 0, 27), (9, 6, 24), (0.8, 0, 1)])
def test_adaptive_count_follows_the_rank(scale: float, bias: float, count: int) -> None:
    """Three raters of which two attend alike have rank two."""
    attention = torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.2, 0.4, 0.6, 0.0], [0.0, 0.1, 0.0, 0.3]])
    assert adaptive_count(attention, scale=scale, bias=bias) == count


def test_full_rank_keeps_all_tokens_in_version_1() -> None:
    """529 image tokens, 19 raters, budget 64: where the rank is the number of tokens left, none leaves."""
    generator = torch.Generator().manual_seed(0)
    left, counts = 529, []
    for _ in range(4):
        kept = adaptive_count(torch.rand(19, left, generator=generator), scale=0.8, bias=0.0)
        if kept < left:
            tokens = torch.randn(left - kept, 2, generator=generator)
            kept += len(recycle(tokens, torch.rand(left - kept, generator=generator))[0])
        counts.append(left := kept)
    assert counts == [31, 16, 16, 16]


def test_vector_of_the_density_peaks() -> None:
    points = torch.tensor(POINTS)[:, None]
    peaks = density_peaks(points, 2, neighbours=3)
    density = [0.305237, 0.635506, 0.377822, 0.633391, 0.805198, 0.567414, 0.031535]
    torch.testing.assert_close(peaks.density, torch.tensor(density), atol=1e-6, rtol=0)
    separation = torch.tensor([1, 5.4, 0.6, 0.4, 9, 0.7, 1.9])
    torch.testing.assert_close(peaks.separation, separation, atol=1e-6, rtol=0)
    assert peaks.centres.tolist() == [4, 1]
    means = [float(points[peaks.labels == cluster].mean()) for cluster in range(2)]
    assert means == pytest.approx([7.125, 0.866667], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_density_peaks_against_the_naive_algorithm(seed: int) -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
    peaks = density_peaks(points, 4, neighbours=5)
    members = naive_peaks(points.double().tolist(), 4, 5)
    assert peaks.centres.tolist() == list(members)
    for cluster, own in enumerate(members.values()):
        assert (peaks.labels == cluster).nonzero().flatten().tolist() == own


def test_equal_points_are_clusters_of_their_own_in_order() -> None:
    peaks = density_peaks(torch.ones(4, 2), 3, neighbours=2)
    assert peaks.centres.tolist() == [0, 1, 2]
    assert peaks.labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("dropped", [1, 10, 31, 70])
def test_recycled_tokens_against_the_naive_algorithm(dropped: int) -> None:
    generator = torch.Generator().manual_seed(dropped)
    tokens, scores = torch.randn(dropped, 3, generator=generator), torch.rand(dropped, generator=generator)
    best = sorted(range(dropped), key=lambda i: -float(scores[i]))[: int(0.3 * dropped) + 1]
    clusters = int(len(best) / 10) + 1
    members = naive_peaks([tokens[i].double().tolist() for i in best], clusters, clusters)
    expected = {best[c]: tokens[[best[i] for i in own]].mean(dim=0) for c, own in members.items()}
    slots, means = recycle(tokens, scores)
    assert slots.tolist() == sorted(expected)
    torch.testing.assert_close(means, torch.stack([expected[slot] for slot in sorted(expected)]))


@pytest.mark.parametrize(
    ("kept", "mean"),
    [((300, 200, 110), 192.03125), ((303, 110, 36), 128.6), ((238, 48, 26), 96.9), ((66, 30, 17), 64.8)],
)
def test_vectors_of_the_counts_with_recycled_tokens(kept: tuple[int, ...], mean: float) -> None:
    """Version 1.5 on 576 tokens in 32 layers."""
    left, counts = 576, []
    for best in kept:
        dropped = left - best
        left = best + len(recycle(torch.randn(dropped, 2), torch.rand(dropped))[0])
        counts.append(left)
    if kept == (300, 200, 110):
        assert counts == [309, 204, 113]
    assert mean_tokens(576, 32, [2, 6, 15], counts) == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(0, 11.313708), (1, 10.976716), (10, 7.569582), (100, 5.399371), (600, 2.349313)],
)
def test_vectors_of_the_gravity(distance: int, expected: float) -> None:
    frequencies = 10000.0 ** (-torch.arange(0, 128, 2).double() / 128)
    angles = torch.tensor([1000.0 - distance, 1000.0]).double()[:, None] * frequencies
    cos, sin = (torch.cat([part, part], dim=1)[None] for part in (angles.cos(), angles.sin()))
    pull = gravity(cos[:, 1:], sin[:, 1:], cos, sin)
    assert pull[0, 0].tolist() == pytest.approx([expected, 128**0.5], abs=2e-5)


def test_gravity_is_the_product_of_rotated_ones() -> None:
    angles = torch.rand(1, 5, 4, generator=torch.Generator().manual_seed(0)) * 6
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    ones = torch.cat([cos[..., :4] - sin[..., :4], cos[..., 4:] + sin[..., 4:]], dim=-1)
    torch.testing.assert_close(gravity(cos, sin, cos, sin), ones @ ones.transpose(1, 2) / 8**0.5)


def test_gravity_free_attention_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    weights, pull = torch.rand(2, 4, 3, 6, generator=generator), torch.randn(2, 3, 6, generator=generator)
    raters = torch.tensor([[True, True, False], [False, True, True]])
    image = torch.tensor([[False, True, True, True, False, False], [True, True, False, False, True, False]])
    freed = gravity_free(weights, pull, raters, image, heads=2, floor=0.2)
    for b in range(2):
        divided = weights[b] / pull[b].clamp(min=0.2)
        mass = [
            sum(float(divided[h, r, j]) for r in range(3) for j in range(6) if raters[b, r] and image[b, j])
            for h in range(4)
        ]
        best = sorted(range(4), key=lambda h: -mass[h])[:2]
        torch.testing.assert_close(freed[b], divided[best])


def naive_raters(states: Tensor, inputs: dict[str, Tensor]) -> list[list[int]]:
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    raters = []
    for b, mask in enumerate(image):
        places = mask.nonzero().flatten().tolist()
        words = list(range(max(places) + 1, len(mask))) if places else []
        text = torch.zeros_like(image)
        text[b, words] = True
        relevance = naive_relevance(states, text, image & (torch.arange(len(image)) == b)[:, None])[b]
        mean = sum(float(relevance[i]) for i in words) / max(len(words), 1)
        raters.append([i for i in words if relevance[i] > mean])
    return raters


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("version", ["1.5", "2.0", "1.0"])
def test_equals_masking_and_merging(family: str, version: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    left = [mask.nonzero().flatten().tolist() for mask in image]
    pruning_stages = {1: 5, 3: 2} if version != "1.0" else {1: None, 3: None}
    raters: list[list[int]] = []
    rotary: list[Tensor] = []

    def remember_rotary(module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        rotary[:] = [each.expand(len(image), -1, -1).double() for each in output]

    def scores_of(weights: Tensor, b: int) -> dict[int, float]:
        heads = list(range(weights.shape[1]))

        def value(h: int, i: int, j: int) -> float:
            if version != "2.0":
                return float(weights[b, h, i, j])
            cos, sin = rotary
            pull = float(cos[b, i] @ cos[b, j] + sin[b, i] @ sin[b, j]) / math.sqrt(cos.shape[-1])
            return float(weights[b, h, i, j]) / max(pull, 0.05 * math.sqrt(cos.shape[-1]))

        if version == "2.0":
            heads.sort(key=lambda h: -sum(value(h, i, j) for i in raters[b] for j in left[b]))
            heads = heads[:3]
        return {j: sum(value(h, i, j) for h in heads for i in raters[b]) for j in left[b]}

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer == 0:
            raters[:] = naive_raters(states, inputs)
        if layer - 1 not in pruning_stages:
            return None
        states, dropped = states.clone(), torch.zeros_like(image)
        for b, places in enumerate(left):
            if not places:
                continue
            scores = scores_of(seen[layer - 1], b)
            kept = pruning_stages[layer - 1]
            if kept is None:
                attention = seen[layer - 1][b].mean(dim=0)[raters[b]][:, places]
                kept = int(int(torch.linalg.matrix_rank(attention)) * 0.8)
            ranked = sorted(places, key=lambda j: -scores[j])
            left[b], gone = sorted(ranked[:kept]), ranked[kept:]
            if version != "2.0" and gone:
                best = gone[: int(0.3 * len(gone)) + 1]
                clusters = int(len(best) / 10) + 1
                tokens = states[b].clone()
                members = naive_peaks([tokens[j].double().tolist() for j in best], clusters, clusters)
                for centre, own in members.items():
                    states[b, best[centre]] = tokens[[best[i] for i in own]].mean(dim=0)
                    left[b].append(best[centre])
                left[b].sort()
            dropped[b, [j for j in places if j not in left[b]]] = True
        return dropped, states

    kept_tokens = None if version == "1.0" else tuple(pruning_stages.values())
    method = SparseVLM(
        version=version,
        budget=64,
        prune_layers=tuple(pruning_stages),
        kept_tokens=kept_tokens,
        gravity_heads=3,
    )
    handle = model.get_decoder().rotary_emb.register_forward_hook(remember_rotary)
    expected = masked_logits(model, inputs, enter=enter)
    handle.remove()
    with method(model), torch.no_grad():
        pruned = model(**inputs).logits
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[0, -1] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"version": "3"}, r"version is '3'; it must be one of '1.0', '1.5', '2.0'"),
        ({"budget": 100}, r"budget is 100; version 1.5 has schedules for 192, 128, 96, 64"),
        ({"version": "1.0", "budget": 96}, r"budget is 96; version 1.0 has schedules for 192, 128, 64"),
        (
            {"version": "1.0", "kept_tokens": 9},
            r"kept_tokens is \(9,\), but version 1.0 works the counts out",
        ),
        ({"kept_tokens": (9, 8)}, r"kept_tokens is \(9, 8\); .* prune_layers \(2, 6, 15\)"),
        (
            {"prune_layers": 2, "kept_tokens": -1},
            r"kept_tokens is \(-1,\); it must hold numbers of image tokens",
        ),
        ({"prune_layers": (4, 2)}, r"prune_layers is \(4, 2\); .* in ascending order"),
        ({"gravity_heads": 0}, r"gravity_heads is 0"),
        ({"gravity_floor": 0}, r"gravity_floor is 0; it must be a number from 0.001 to 1"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseVLM(**parameters)


def config_of(layers: int, **vision: int) -> LlavaConfig:
    text = {"model_type": "llama", "num_hidden_layers": layers, "num_attention_heads": 32}
    return LlavaConfig(text_config=text, vision_config={"model_type": "clip_vision_model", **vision})


def test_published_schedules_are_for_the_published_model() -> None:
    known = config_of(32, image_size=336, patch_size=14)
    for version in ("1.0", "1.5", "2.0"):
        SparseVLM(version=version, budget=64).resolve(known, None)
        for other in (
            config_of(40, image_size=336, patch_size=14),
            config_of(32, image_size=224, patch_size=14),
        ):
            with pytest.raises(
                ValueError, match=r"are for LLaVA-1.5-7B, .*; for this llava of .* pass prune"
            ):
                SparseVLM(version=version, budget=64).resolve(other, None)
    SparseVLM(version="1.0", prune_layers=(2, 6)).resolve(config_of(28), None)
    with pytest.raises(ValueError, match="pass prune_layers and kept_tokens"):
        SparseVLM(prune_layers=(2, 6)).resolve(config_of(28), None)
    with pytest.raises(ValueError, match=r"prune_layers has 27; .* after layers 0 to 26"):
        SparseVLM(prune_layers=27, kept_tokens=1).resolve(config_of(28), None)
    with pytest.raises(ValueError, match="gravity_heads is 40, but this model has 32 heads"):
        SparseVLM(version="2.0", gravity_heads=40).resolve(known, None)


@pytest.mark.parametrize(
    ("kept", "mean"),
    [((300, 200, 118), 192.4), ((238, 108, 60), 128.0), ((246, 54, 28), 96.8), ((66, 34, 20), 64.4)],
)
def test_mean_tokens_of_version_2(kept: tuple[int, ...], mean: float) -> None:
    assert mean_tokens(576, 32, [2, 6, 15], kept) == pytest.approx(mean, abs=0.05)
