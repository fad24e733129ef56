"""CDPruner: the vectors of its specification, and an independent reference on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.cdpruner import CDPruner, conditional_subset, quality, relevance
from vlmfix.methods.pruning.question_words import asking_words

TOKENS = torch.tensor([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.8, 0.6], [0.5, 0.5, 0.5], [0, 0, 1]])
JOINT = torch.tensor([[1, 0.2], [0.8, 0.3], [0.1, 1], [0.5, 0.5], [-0.2, 1], [1, 1]])
WORDS = torch.tensor([[1, 0], [0.6, 0.8]])


def naive(tokens: Tensor, weights: Tensor, count: int) -> list[int]:
    """The picks by determinants of whole kernels, in float64."""
    directions = torch.nn.functional.normalize(tokens.double(), dim=-1)
    kernel = directions @ directions.T * weights.double()[:, None] * weights.double()
    picks: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(tokens)) if i not in picks]
        volume = {i: float(torch.linalg.det(kernel[[*picks, i]][:, [*picks, i]])) for i in left}
        picks.append(max(left, key=lambda i: round(volume[i], 12)))
    return picks


def test_vectors_of_relevance_and_weights() -> None:
    found = relevance(JOINT, WORDS)
    expected = torch.tensor([0.862911, 0.889513, 0.477618, 0.848528, 0.235339, 0.848528])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    weights = torch.tensor([0.040666, 0.000002, 0.629643, 0.062652, 1.000002, 0.062652])
    torch.testing.assert_close(quality(-found), weights, atol=1e-6, rtol=0)
    assert quality(torch.full((3,), 0.5)).tolist() == [1, 1, 1]
    torch.testing.assert_close(quality(-found, theta=0.5), (weights / 2).exp(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("sign", "theta", "picks"),
    [(-1, None, [4, 2, 5]), (1, None, [1, 5, 3]), (-1, 0.5, [4, 2, 5])],
)
def test_vectors_in_the_order_of_the_picks(sign: int, theta: float | None, picks: list[int]) -> None:
    weights = quality(sign * relevance(JOINT, WORDS), theta=theta)
    assert conditional_subset(TOKENS, weights, 3).tolist() == picks


def test_the_gains_are_those_of_the_specification() -> None:
    weights = quality(-relevance(JOINT, WORDS)).double()
    directions = torch.nn.functional.normalize(TOKENS.double(), dim=-1) * weights[:, None]
    volumes = [torch.linalg.det(directions[own] @ directions[own].T) for own in ([4], [4, 2], [4, 2, 5])]
    gains = [float(volumes[0]), float(volumes[1] / volumes[0]), float(volumes[2] / volumes[1])]
    assert gains == pytest.approx([1.000003, 0.264300, 0.001963], abs=1e-6)


def test_equal_weights_and_ties() -> None:
    assert conditional_subset(TOKENS, torch.ones(6), 3).tolist() == [0, 2, 5]


def test_an_exhausted_volume_is_filled_up_by_weight() -> None:
    weights = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    picks = conditional_subset(TOKENS, weights, 6).tolist()
    assert picks[:3] == naive(TOKENS, weights, 3)
    assert picks[3:] == sorted(picks[3:])
    assert conditional_subset(torch.zeros(3, 2), torch.ones(3), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_against_determinants_on_random_tokens(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, weights = torch.randn(14, 8, generator=generator), torch.rand(14, generator=generator) + 0.1
    assert conditional_subset(tokens, weights, 7).tolist() == naive(tokens, weights, 7)


def test_words_of_a_question() -> None:
    text = "Is there a red cup?\nAnswer the question using a single word or phrase."

    def words(**kwargs: bool) -> list[str]:
        return [text[start:end] for start, end in asking_words(text, **kwargs)]

    assert words(content_only=True, strip_suffix=True) == ["red", "cup"]
    assert words(content_only=False, strip_suffix=True) == ["Is", "there", "a", "red", "cup?"]
    assert "phrase" in words(content_only=True, strip_suffix=False)
    assert asking_words("Is it?", content_only=True, strip_suffix=True) == [(0, 2), (3, 6)]
    only = "Answer the question using a single word or phrase."
    assert asking_words(only, content_only=False, strip_suffix=True)


def test_equals_masking(llava: PreTrainedModel) -> None:
    """The first prompt has two images, which share the budget, and the last one has none."""
    inputs = families.prompt("llava", llava, (2, 1, 0))
    image = inputs["input_ids"] == families.IMAGE_TOKEN

    def enter(layer: int, states: Tensor, seen: list[Tensor]) -> Any:
        if layer != 0:
            return None
        dropped = image.clone()
        for row, images in ((0, 2), (1, 1)):
            places = image[row].nonzero().flatten()
            words = states[row, places[-1] + 2 :]  # after the last special token
            for own in places.chunk(images):
                cosines = torch.cosine_similarity(states[row, own][:, None], words[None], dim=-1)
                mean = cosines.mean(dim=1)
                weights = (mean - mean.min() + 1e-6) / (mean.max() - mean.min())
                dropped[row, own[naive(states[row, own], weights, 6 // images)]] = False
        return dropped, states

    with CDPruner(kept_tokens=6)(llava, families.PROCESSOR), torch.no_grad():
        pruned = llava(**inputs).logits
    expected = masked_logits(llava, inputs, enter=enter)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (llava(**inputs).logits[0, -1] - expected[0]).abs().max() > 1e-3


def test_without_a_processor_only_diversity(llava: PreTrainedModel) -> None:
    with (
        pytest.raises(vlmfix.UnsupportedError, match="CDPruner needs the processor"),
        CDPruner(kept_tokens=4)(llava),
    ):
        pass
    method = CDPruner(kept_tokens=4, relevance="none")
    with method(llava), torch.no_grad():
        llava(**families.prompt("llava", llava))
    assert method.edit_stats().site_share == 12 / 16


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"relevance": "clip"}, "relevance is 'clip'; it must be one of 'embeddings', 'none'"),
        ({"relevance_sign": 0}, "relevance_sign is 0; it must be 1 or -1"),
        ({"theta": 1}, "theta is 1; it must be a number from 0 to 0.99"),
        ({"strip_suffix": 1}, "strip_suffix is 1; it must be true or false"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CDPruner(**parameters)
