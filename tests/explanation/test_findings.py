"""Verdicts about the values of a profile, on evidence made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vlmfix.explanation.findings import (
    SinkEvidence,
    head_finding,
    head_lists,
    sink_findings,
    vision_head_finding,
)


def evidence(*dimensions: int, size: float = 9.0, score: float = 8.0) -> SinkEvidence:
    """Two pictures, four layers: the first token is massive in some of 16 dimensions, and one of four image
    tokens is a sink."""
    first = np.ones((2, 4, 16))
    first[..., list(dimensions)] = size
    scores = np.tile([score, 0, 0, 0], (4, 1))
    return SinkEvidence(first, [scores, scores])


def profile(**values: Any) -> dict[str, Any]:
    return {name: {"value": value, "source": "a paper"} for name, value in values.items()}


@pytest.mark.parametrize(
    ("listed", "verdict"),
    [([3], "supported"), ([3, 7], "in part"), ([7], "contradicted"), ([7, 9], "contradicted")],
)
def test_sink_dimensions(listed: list[int], verdict: str) -> None:
    [found] = sink_findings(evidence(3), profile(sink_dimensions=listed), 6.5)
    assert found.verdict == verdict
    assert "exceeds 6.5 in the dimensions 3" in found.reason
    assert found.source == "a paper"


def test_dimensions_beside_those_of_the_profile_are_named() -> None:
    [found] = sink_findings(evidence(3, 5), profile(sink_dimensions=[3]), 6.5)
    assert found.verdict == "supported"
    assert "5 beside those of the profile" in found.reason
    [missing] = sink_findings(evidence(3, 5), {}, 6.5)
    assert (missing.verdict, missing.value) == ("not tested", "")
    assert "in the dimensions 3, 5" in missing.reason


@pytest.mark.parametrize(
    ("threshold", "score", "verdict"),
    [
        (6.5, 8.0, "supported"),
        (6.5, 2.0, "undecided"),
        (9.5, 8.0, "contradicted"),
        (-1.0, 8.0, "contradicted"),
    ],
)
def test_sink_threshold(threshold: float, score: float, verdict: str) -> None:
    values = profile(sink_dimensions=[3], sink_threshold=threshold)
    assert sink_findings(evidence(3, score=score), values, threshold)[1].verdict == verdict


@pytest.mark.parametrize(
    ("last", "verdict"), [(2, "supported"), (4, "undecided"), (1, "supported"), (3, "contradicted")]
)
def test_layers_of_vision_aware_heads(last: int, verdict: str) -> None:
    divergence = np.array([[5.0, 5], [1, 1], [5, 5], [6, 6]])
    if last == 2:
        found = vision_head_finding(divergence, profile(vhr_num_last_layers=2, vhr_extra_layers=[0]))
    else:
        found = vision_head_finding(divergence, profile(vhr_num_last_layers=last))
    assert found is not None
    assert found.verdict == verdict
    assert vision_head_finding(divergence, {}) is None


def effects(of_list: float, of_random: float, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 12 invented and 12 present objects: silencing the list, and 20 times random heads."""
    wrong = torch.arange(2 * count) < count
    found = torch.zeros(2 * count, 21)
    found[wrong, 0] = of_list
    found[wrong, 1:] = of_random + torch.linspace(-0.01, 0.01, 20)
    return found, wrong


@pytest.mark.parametrize(
    ("of_list", "of_random", "verdict"),
    [(0.3, 0.0, "supported"), (0.05, 0.05, "undecided"), (-0.1, 0.0, "contradicted")],
)
def test_hallucination_heads(of_list: float, of_random: float, verdict: str) -> None:
    found = head_finding(*effects(of_list, of_random), profile(adhh_heads=[[1, 2], [0, 3]]))
    assert found is not None
    assert found.verdict == verdict
    assert found.value == "2 heads: 1:2, 0:3"


def test_heads_are_not_judged_on_few_objects_or_one_kind() -> None:
    values = profile(adhh_heads=[[1, 2]])
    few = head_finding(*effects(0.3, 0.0, count=3), values)
    none = head_finding(torch.zeros(4, 21), torch.zeros(4, dtype=torch.bool), values)
    assert few is not None
    assert none is not None
    assert (few.verdict, none.verdict) == ("undecided", "not tested")
    assert "0 invented and 4 present objects are named" in none.reason
    assert head_finding(*effects(0.3, 0.0), {}) is None


def test_random_lists_have_as_many_heads_in_the_same_layers() -> None:
    lists = head_lists([(1, 2), (1, 3), (3, 0)], (4, 6))
    assert lists.shape == (21, 4, 6)
    assert lists[0].nonzero().tolist() == [[1, 2], [1, 3], [3, 0]]
    assert (lists.sum(dim=2) == torch.tensor([0, 2, 0, 1])).all()
    assert not (lists[1:] & lists[0]).any()
