"""EAH: the vector of its specification, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.full_matrices import full_matrices, step_logits
from vlmfix.engine import attention_rows
from vlmfix.methods.attention.eah import best_head, spread_head

WEIGHTS = torch.tensor(
    [
        [
            [1, 0, 0, 0, 0],
            [0.6, 0.4, 0, 0, 0],
            [0.5, 0.3, 0.2, 0, 0],
            [0.4, 0.4, 0.1, 0.1, 0],
            [0.3, 0.5, 0.1, 0.05, 0.05],
        ],
        [
            [1, 0, 0, 0, 0],
            [0.5, 0.5, 0, 0, 0],
            [0.2, 0.4, 0.4, 0, 0],
            [0.1, 0.4, 0.4, 0.1, 0],
            [0.1, 0.3, 0.5, 0.05, 0.05],
        ],
    ]
)[None]


def test_vector() -> None:
    received = WEIGHTS.tril(-1).sum(dim=2)
    rows_after = torch.tensor([[4, 3, 2, 1, 0]])
    means = torch.tensor([[[0.45, 0.4, 0.1, 0.05, 0], [0.225, 0.366667, 0.45, 0.05, 0]]])
    torch.testing.assert_close(received / rows_after.clamp_min(1)[:, None], means, atol=1e-6, rtol=0)
    image = torch.tensor([[False, True, True, False, False]])
    for threshold, head, count in ((0.2, 1, 2), (0.39, 0, 1), (0.5, 0, 0)):
        best, seen = best_head(received, rows_after, image, threshold=threshold)
        assert (best.tolist(), seen.tolist()) == ([[head]], [[count]])
    spread = spread_head(WEIGHTS, torch.tensor([[1]]), torch.tensor([[True]]))
    assert torch.equal(spread, WEIGHTS[:, [1, 1]])
    assert torch.equal(spread_head(WEIGHTS, torch.tensor([[1]]), torch.tensor([[False]])), WEIGHTS)


def reference(
    model: PreTrainedModel, inputs: dict[str, Tensor], layers: range, threshold: float
) -> tuple[Tensor, set[int]]:
    """Logits under the edit in slow loops, and the heads that were chosen: one pass without it in each layer
    finds the head, as layers before are edited already."""
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    length = image.shape[1]
    first = inputs["attention_mask"].argmax(dim=1).tolist()
    plain: dict[tuple[int, int], dict[int, Tensor]] = {}
    chosen: dict[tuple[int, int], int] = {}

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if layer not in layers or not first[sample] <= position < length or not image[sample].any():
            return None
        weights = scores.softmax(dim=-1)
        plain.setdefault((layer, sample), {})[position] = weights
        head = chosen.get((layer, sample))
        return None if head is None else weights[head].expand_as(weights)

    for layer in layers:
        with full_matrices(model, edit), torch.no_grad():
            model(**inputs)
        for (of, sample), rows in plain.items():
            if of == layer:
                columns = [key for key in range(length - 1) if image[sample, key]]
                means = {
                    key: sum(rows[row][:, key] for row in range(key + 1, length)) / (length - 1 - key)
                    for key in columns
                }
                counts = [
                    sum(float(mean[head]) > threshold for mean in means.values())  # type: ignore[index]
                    for head in range(4)
                ]
                if max(counts):
                    chosen[layer, sample] = counts.index(max(counts))
    with full_matrices(model, edit):
        return step_logits(model, inputs), set(chosen.values())


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_model_against_naive_full_matrices(
    family: str, models: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    expected, heads = reference(model, inputs, range(1, 3), 0.045)
    assert heads - {0}
    monkeypatch.setattr(attention_rows, "_BLOCK", 2000)
    method = vlmfix.EAH(threshold=0.045, layers=(1, 3))
    with method(model):
        found = step_logits(model, inputs)
        without_cache = step_logits(model, inputs | {"use_cache": False})
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(without_cache, expected, atol=2e-5, rtol=1e-4)
    stats = method.edit_stats()
    assert stats.layers_edited == [1, 2]
    assert stats.size is not None
    assert 0 < stats.size < 1


def test_layers(llava: PreTrainedModel) -> None:
    method = vlmfix.EAH.released()
    assert method.threshold == 0.0008
    assert method.resolve(llava.config, None).layers == (0, families.LAYERS)
    assert vlmfix.EAH().resolve(llava.config, None).layers == (0, 1)


def test_with_other_methods(llava: PreTrainedModel) -> None:
    """An edit of the weights in the same layer is refused, one of the scores is not."""
    inputs = families.prompt("llava", llava, (1, 2))
    eah = vlmfix.EAH(threshold=0.04, layers=(2, 3))
    heads = vlmfix.ADHH(threshold=0.1, heads=((2, 0),))
    message = "EAH and ADHH both change attention weights in layer 2, and one edit would be lost"
    with eah(llava), heads(llava), pytest.raises(vlmfix.UnsupportedError, match=message):
        llava.generate(**inputs, max_new_tokens=2)
    found = []
    for cache in (True, False):
        with eah(llava), vlmfix.PAI(alpha=1.0)(llava):
            found.append(step_logits(llava, inputs | {"use_cache": cache}))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_a_threshold_that_none_exceeds_is_a_reason(llava: PreTrainedModel) -> None:
    warns = pytest.warns(vlmfix.InactiveMethodWarning, match="no image token gets a mean attention above 0.9")
    with warns, vlmfix.EAH(threshold=0.9)(llava):
        llava.generate(**families.prompt("llava", llava), max_new_tokens=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 1.1}, "threshold is 1.1; it must be a number from 0 to 1"),
        ({"layers": "some"}, "layers is 'some'; it must be the first edited layer"),
        ({"gate": "always:1"}, "what EAH does is something else"),
    ],
)
def test_what_is_refused(parameters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.EAH(**parameters)
