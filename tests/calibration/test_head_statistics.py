"""Statistics of head importance on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlmfix.calibration.head_statistics import (
    choose_count,
    contrast,
    first_order_effects,
    head_mask,
    random_set_p,
    random_sets,
    ranking,
    resampled_differences,
    shares_in_best,
)

OUTPUTS = torch.tensor([[1, 0], [0.5, -1], [-0.5, 2]])
WEIGHT = torch.tensor([[1, 0.5], [0, 1], [-1, 0]])
BIAS = torch.tensor([0.1, 0, 0])


def margin(logits: Tensor, token: int) -> Tensor:
    others = logits.clone()
    others[:, token] = -torch.inf
    return logits[:, token] - others.amax(dim=1)


SCORES = {
    "prob": lambda logits, token: logits.softmax(dim=-1)[:, token],
    "logprob": lambda logits, token: logits.log_softmax(dim=-1)[:, token],
    "margin": margin,
}


@pytest.mark.parametrize(
    ("score", "token", "expected"),
    [
        ("prob", 0, [0.264712, 0.222421, -0.312487]),
        ("prob", 1, [-0.192852, -0.216061, 0.335697]),
        ("logprob", 0, [0.429650, 0.361009, -0.507193]),
        ("logprob", 1, [-0.570350, -0.638991, 0.992807]),
        ("margin", 0, [1, 1, -1.5]),
        ("margin", 1, [-1, -1, 1.5]),
    ],
)
def test_first_order(score: str, token: int, expected: list[float]) -> None:
    """Three heads of one layer, whose outputs are projected and added; two equal rows."""

    def of(gates: Tensor) -> Tensor:
        return SCORES[score]((gates[:, 0, :, None] * OUTPUTS).sum(dim=1) @ WEIGHT.T + BIAS, token)

    effects, scores = first_order_effects(of, torch.ones(2, 1, 3))
    torch.testing.assert_close(effects, torch.tensor([[expected]] * 2), atol=2e-6, rtol=0)
    torch.testing.assert_close(scores, of(torch.ones(2, 1, 3)))
    assert not effects.requires_grad
    assert not scores.requires_grad


EFFECTS = torch.tensor(
    [
        [[0.10, 0.02], [0, 0.05]],
        [[0.02, 0.05], [0.01, 0.06]],
        [[0.20, 0.04], [0.02, 0.01]],
        [[0.04, 0.01], [0.03, 0.02]],
        [[0.03, 0.03], [0.02, 0.04]],
    ]
)
HALLUCINATED = torch.tensor([True, False, True, False, False])


def test_contrast_and_ranking() -> None:
    found = contrast(EFFECTS, HALLUCINATED)
    torch.testing.assert_close(found.difference, torch.tensor([[0.12, 0], [-0.01, -0.01]]), atol=1e-7, rtol=0)
    expected = torch.tensor([[2.384158, 0], [-0.866025, -0.433013]])
    torch.testing.assert_close(found.t, expected, atol=1e-5, rtol=0)
    assert ranking(found.difference.flatten()) == [0, 1, 2, 3]
    assert ranking(torch.tensor([0.5, 1.0, 1.0 + 1e-8, 0.0])) == [1, 2, 0, 3]
    assert contrast(EFFECTS[:2], HALLUCINATED[:2]).t.isnan().all()


def test_resamples_draw_whole_images() -> None:
    images = torch.tensor([4, 4, 7, 7, 9])
    found = resampled_differences(EFFECTS, HALLUCINATED, images, draws=4000)
    assert 3500 < len(found) < 3900  # 1 draw in 27 has the last image alone
    means = {  # by images drawn, of the first head
        (1, 1, 1): 0.12,
        (1, 0, 0): 0.08,
        (2, 1, 0): (2 * 0.1 + 0.2) / 3 - (2 * 0.02 + 0.04) / 3,
        (0, 1, 2): 0.2 - (0.04 + 2 * 0.03) / 3,
    }
    for mean in means.values():
        assert ((found[:, 0, 0] - mean).abs() < 1e-7).any()
    different = {round(each, 6) for each in found[:, 0, 0].tolist()}
    assert len(different) <= 9  # of 10 ways to draw 3 of 3 images
    # The first head alone is the best wherever hallucinated objects are.
    torch.testing.assert_close(shares_in_best(found.flatten(1), 1), torch.tensor([1.0, 0, 0, 0]).double())


@pytest.mark.parametrize(
    ("gains", "drops", "expected"),
    [
        ([0, 0.05, 0.10, 0.12], [0, 0, 0, 0], 2),
        ([0, 0.05, 0.08, 0.12], [0, 0, 0, 0], 5),
        ([0, 0.04, 0.08, 0.12], [0, 0, 0, 0.06], 2),
        ([0, 0.02, 0.01, 0.025], [0, 0, 0, 0], 0),  # nothing worth having
        ([0, 0.3, 0.3, 0.3], [0, 0.06, 0.06, 0.06], 0),
        ([0, -0.1, -0.2, -0.1], [0, 0, 0, 0], 0),
    ],
)
def test_number_of_heads(gains: list[float], drops: list[float], expected: int) -> None:
    errors = [0, 0.03, 0.03, 0.03]
    assert choose_count([0, 1, 2, 5], gains, errors, drops, max_correct_drop=0.05) == expected


def test_random_sets_have_the_layers_of_the_list() -> None:
    heads = [(0, 1), (2, 0), (2, 3)]
    sets = random_sets(heads, (3, 4), draws=200)
    assert (sets.sum(dim=2) == torch.tensor([1, 0, 2])).all()
    assert not (sets & head_mask([heads], (3, 4))).any()
    assert sets[:, 0].float().mean(dim=0).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.12)
    crowded = random_sets([(1, 0), (1, 1), (1, 3)], (3, 4), draws=3)
    assert (crowded == head_mask([[(1, 2)]], (3, 4))).all()  # all that is left


def test_p_counts_the_list_itself() -> None:
    assert random_set_p(0.2, [0.1] * 9 + [0.2]) == pytest.approx(2 / 11)
    assert random_set_p(0.3, [0.1] * 20) == pytest.approx(1 / 21)
