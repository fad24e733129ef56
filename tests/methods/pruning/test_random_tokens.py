"""Random image tokens: uniform, without replacement, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.random_tokens import RandomTokens, item_seed, random_subset


def test_subset_is_ascending_distinct_and_given_by_the_seed() -> None:
    chosen = random_subset(20, 7, seed=3).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 7
    assert set(chosen) <= set(range(20))
    assert random_subset(20, 7, seed=3).tolist() == chosen
    assert random_subset(20, 7, seed=4).tolist() != chosen


def test_every_index_is_chosen_equally_often() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[random_subset(10, 3, seed=seed)] += 1
    assert (counts / 2000 - 0.3).abs().max() < 0.05


def test_every_prompt_has_a_seed_of_its_own() -> None:
    seeds = [item_seed(seed, ids) for seed in (0, 1) for ids in ([1, 2], [2, 1], [12])]
    assert len(set(seeds)) == len(seeds)
    assert item_seed(0, [1, 2]) == 66112467763644943


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_equals_masking(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 1, 0))
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    dropped = ids == families.IMAGE_TOKEN
    for b in range(2):
        places = (ids[b] == families.IMAGE_TOKEN).nonzero().flatten()
        seed = item_seed(7, ids[b, real[b]].tolist())
        dropped[b, places[random_subset(len(places), 3, seed=seed)]] = False
    with RandomTokens(kept_tokens=3, seed=7)(model), torch.no_grad():
        pruned = model(**inputs).logits
    expected = masked_logits(model, inputs, enter=lambda layer, states, seen: (dropped, states))
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="kept_tokens is -3; it must be a number of tokens, 1 or more"):
        RandomTokens(kept_tokens=-3)
    with pytest.raises(ValueError, match=r"seed is 1.5; it must be a whole number"):
        RandomTokens(seed=1.5)  # type: ignore[arg-type]
