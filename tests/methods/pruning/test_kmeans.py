"""Cluster-aggregate: well separated clusters, and an independent reference on random tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.kmeans import (
    ITERATIONS,
    KMeans,
    aggregate,
    k_means,
)


def naive(tokens: Tensor, clusters: int, seed: int) -> list[list[int]]:
    """The members of the clusters, with plain loops in float64 on the same draws."""
    points = tokens.double().tolist()
    race = torch.empty(clusters, len(points)).exponential_(generator=torch.Generator().manual_seed(seed))

    def squared(a: list[float], b: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    centres: list[list[float]] = []
    for times in race.double().tolist():
        chances = [min((squared(p, c) for c in centres), default=1.0) for p in points]
        centres.append(points[max(range(len(points)), key=lambda i: chances[i] / times[i])])
    for step in range(ITERATIONS + 1):
        members: list[list[int]] = [[] for _ in centres]
        for i, p in enumerate(points):
            members[min(range(clusters), key=lambda c: squared(p, centres[c]))].append(i)
        if step < ITERATIONS:
            for c, own in enumerate(members):
                if own:
                    centres[c] = [
                        sum(column) / len(own) for column in zip(*(points[i] for i in own), strict=True)
                    ]
    return members


def medoid(tokens: Tensor, members: list[int], mean: Tensor) -> int:
    """The first of the members that are nearest to the mean, up to rounding."""
    distances = {i: float((tokens[i].double() - mean).norm()) for i in members}
    return min(i for i in members if distances[i] <= min(distances.values()) * (1 + 1e-4))


@pytest.mark.parametrize("seed", range(5))
def test_against_the_naive_algorithm_on_random_tokens(seed: int) -> None:
    tokens = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
    labels = k_means(tokens, 6, seed=seed)
    members = naive(tokens, 6, seed)
    assert [(labels == c).nonzero().flatten().tolist() for c in range(6)] == members
    medoids, means = aggregate(tokens, labels)
    expected = {}
    for own in members:
        mean = tokens[own].double().mean(dim=0)
        expected[medoid(tokens, own, mean)] = mean
    assert medoids.tolist() == sorted(expected)
    rows = torch.stack([expected[slot] for slot in sorted(expected)])
    torch.testing.assert_close(means.double(), rows, atol=1e-5, rtol=0)


def test_separate_clusters_are_found() -> None:
    groups = torch.arange(12) % 3
    tokens = 100.0 * torch.eye(3)[groups] + torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    labels = k_means(tokens, 3, seed=0)
    assert all(len(labels[groups == group].unique()) == 1 for group in range(3))
    assert len(labels.unique()) == 3


def test_as_many_clusters_as_tokens_changes_nothing() -> None:
    tokens = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    medoids, means = aggregate(tokens, k_means(tokens, 7, seed=3))
    assert medoids.tolist() == list(range(7))
    torch.testing.assert_close(means, tokens)


def test_equal_tokens_make_fewer_clusters() -> None:
    tokens = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(4, 1)
    medoids, means = aggregate(tokens, k_means(tokens, 5, seed=0))
    assert medoids.tolist() == [0, 1]
    torch.testing.assert_close(means, tokens[:2])


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_equals_masking_and_merging(family: str, models: dict[str, PreTrainedModel]) -> None:
    """The third prompt has no image, and the second one no more image tokens than are kept."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    kept = int(image[1].sum())

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != 0:
            return None
        states = states.clone()
        places = image[0].nonzero().flatten()
        dropped = torch.zeros_like(image)
        dropped[0, places] = True
        tokens = states[0, places]
        for own in naive(tokens, kept, seed=5):
            mean = tokens[own].double().mean(dim=0)
            slot = places[medoid(tokens, own, mean)]
            dropped[0, slot] = False
            states[0, slot] = mean.float()
        return dropped, states

    with KMeans(kept_tokens=kept, seed=5)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, enter=enter)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[0, -1] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kept_tokens": 0}, r"kept_tokens is 0; it must be a number of tokens, 1 or more, or None for all"),
        ({"kept_tokens": 2.5}, r"kept_tokens is 2.5"),
        ({"seed": -1}, r"seed is -1"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KMeans(**parameters)
