"""MMTok: the vectors of its specification, and an independent reference on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import families
from tests.support.masking import masked_logits
from vlmfix.methods.pruning.mmtok import MMTok, cover, coverage

STATES = torch.tensor([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.8, 0.6], [0.5, 0.5, 0.5], [0, 0, 1]])
TOKENS = torch.tensor([[1, 0.2], [0.8, 0.3], [0.1, 1], [0.5, 0.5], [-0.2, 1], [1, 1]])
WORDS = torch.tensor([[1, 0], [0.6, 0.8]])


def naive(words: Tensor, tokens: Tensor, states: Tensor, count: int, **taus: float) -> list[int]:
    """The formulas with plain loops over picks, in float64, on alpha 0.5."""

    def rows(these: Tensor, those: Tensor, tau: float) -> Tensor:
        cosines = torch.cosine_similarity(these.double()[:, None], those.double()[None], dim=-1)
        return (cosines / tau).softmax(dim=-1) / len(these)

    stacked = torch.cat([rows(words, tokens, taus["text"]), 0.5 * rows(states, states, taus["image"])])
    picks: list[int] = []
    for _ in range(count):
        left = [i for i in range(len(tokens)) if i not in picks]
        picks.append(max(left, key=lambda i: round(float(stacked[:, [*picks, i]].amax(dim=1).sum()), 12)))
    return picks


def test_vectors_of_the_coverage() -> None:
    text = coverage(WORDS, TOKENS, 0.2)[0]
    expected = torch.tensor([0.214956, 0.172289, 0.002625, 0.054766, 0.000599, 0.054766])
    torch.testing.assert_close(text, expected, atol=1e-6, rtol=0)
    expected = torch.tensor([0.078954, 0.076576, 0.000532, 0.000532, 0.009541, 0.000532])
    torch.testing.assert_close(coverage(STATES, None, 0.2)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tau", "alpha", "picks", "gains"),
    [
        (0.2, 0.5, [0, 3, 5], [0.340427, 0.184535, 0.056452]),
        (0.02, 0.5, [0, 3, 5], [0.533926, 0.332979, 0.056452]),
        (0.2, 0.0, [0, 3, 1], [0.257188, 0.101323, 0.0]),
    ],
)
def test_vectors_of_the_picks(tau: float, alpha: float, picks: list[int], gains: list[float]) -> None:
    rows = torch.cat([coverage(WORDS, TOKENS, tau), alpha * coverage(STATES, None, 0.2)])
    found, added = cover(rows, 3)
    assert found.tolist() == picks
    assert added.tolist() == pytest.approx(gains, abs=2e-6)


def test_without_words_the_image_alone_counts() -> None:
    rows = torch.cat([coverage(WORDS[:0], TOKENS, 0.2), coverage(STATES, None, 0.2)])
    assert rows.shape == (6, 6)
    assert cover(rows, 6)[0].sort().values.tolist() == list(range(6))


def test_low_temperatures_do_not_overflow() -> None:
    rows = coverage(WORDS.half() * 100, TOKENS.half(), 0.001)
    torch.testing.assert_close(rows.sum(dim=1), torch.full((2,), 0.5))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_equals_masking(family: str, models: dict[str, PreTrainedModel]) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (1, 0))
    if family == "qwen2_5_vl":  # of the two images, the second has 6 tokens
        inputs = families.prompt(family, model, (1, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    states: list[Tensor] = []
    projector = getattr(model.model, "multi_modal_projector", None) or model.model.visual.merger
    handle = projector.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    method = MMTok(kept_tokens=3, tau_text=0.05)
    with method(model, families.PROCESSOR), torch.no_grad():
        pruned = model(**inputs).logits
    handle.remove()
    [seen] = states

    def of_row(row: int, places: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Places of the tokens of each block, and their features."""
        if family == "llava":
            return [places], [seen[0]]
        if family == "llava_next":  # the whole image, and a tile of 4 x 4 patches with a newline a row
            newline = (torch.arange(20) % 5 == 4)[: len(places) - 16]
            rows = len(newline) // 5
            first = (4 - rows) // 2 * 4
            return [places[:16], places[16:][~newline]], [seen[0], seen[1][first : first + 4 * rows]]
        merged = seen.unflatten(0, (-1, 4)).mean(dim=1)
        windows = torch.tensor([0, 1, 3, 4, 2, 5])  # of 2 x 2 tokens, in a grid of 2 x 3
        return [places], [merged[:4] if row == 0 else merged[4:][windows.argsort()]]

    def enter(layer: int, embeddings: Tensor, _: list[Tensor]) -> Any:
        if layer != 0:
            return None
        dropped = image.clone()
        for row in range(2):
            places = image[row].nonzero().flatten()
            if not len(places):
                continue
            words = embeddings[row, places[-1] + 2 :]
            blocks, features = of_row(row, places)
            sizes = [len(block) for block in blocks]
            shares = [round(3 * sizes[0] / sum(sizes))]
            shares += [3 - shares[0]] * (len(blocks) - 1)
            for own, feature, share in zip(blocks, features, shares, strict=True):
                picks = naive(words, embeddings[row, own], feature, share, text=0.05, image=0.2)
                dropped[row, own[picks]] = False
        return dropped, embeddings

    expected = masked_logits(model, inputs, enter=enter)
    torch.testing.assert_close(pruned[:, -1], expected, atol=2e-5, rtol=1e-4)
    with torch.no_grad():
        assert (model(**inputs).logits[0, -1] - expected[0]).abs().max() > 1e-3
    assert method.edit_stats().details["saturated"] == 0


def test_defaults_of_the_model_type(models: dict[str, PreTrainedModel]) -> None:
    method = MMTok()
    assert method.resolve(models["llava"].config, None).tau_text == 0.02
    assert method.resolve(models["qwen2_5_vl"].config, None).tau_text == 0.01
    assert MMTok(tau_text=0.3).resolve(models["llava"].config, None).tau_text == 0.3


def test_a_ratio_in_the_place_of_a_number(llava: PreTrainedModel) -> None:
    method = MMTok(keep_ratio=0.2)
    with method(llava, families.PROCESSOR), torch.no_grad():
        llava(**families.prompt("llava", llava))
    assert method.edit_stats().size == 3  # of 16


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"keep_ratio": 1.5}, "keep_ratio is 1.5; it must be a number from 0 to 1"),
        ({"alpha": -1}, "alpha is -1; it must be a number from 0"),
        ({"tau_text": 0}, "tau_text is 0; it must be a number from 0.001 to 100"),
        ({"tau_image": 0}, "tau_image is 0; it must be a number from 0.001 to 100"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMTok(**parameters)
