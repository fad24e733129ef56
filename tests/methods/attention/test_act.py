"""ACT: the vectors of its specification, and models with naive full matrices."""

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
from vlmfix.methods.attention.act import find_sinks, spread_sinks

WEIGHTS = torch.tensor(
    [
        [1, 0, 0, 0, 0],
        [0.7, 0.3, 0, 0, 0],
        [0.5, 0.3, 0.2, 0, 0],
        [0.4, 0.3, 0.2, 0.1, 0],
        [0.4, 0.25, 0.15, 0.1, 0.1],
    ]
)
HEADS = ((1, 0), (1, 3), (3, 2))


def test_vector_of_the_prompt() -> None:
    seers, candidates = torch.arange(5, 0, -1), torch.tensor([False, True, True, True, True])
    means = torch.tensor([0.6, 0.2875, 0.183333, 0.1, 0.1])
    torch.testing.assert_close(WEIGHTS.sum(dim=0) / seers, means, atol=1e-6, rtol=0)
    sinks = find_sinks(WEIGHTS.sum(dim=0), seers, candidates, 1.2 / 5)
    assert sinks.tolist() == [False, True, False, False, False]
    edited, taken = spread_sinks(WEIGHTS[None, None], sinks[None, None, None], sink_keep_fraction=0.4)
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0],
            [0.88, 0.12, 0, 0, 0],
            [0.628571, 0.12, 0.251429, 0, 0],
            [0.502857, 0.12, 0.251429, 0.125714, 0],
            [0.48, 0.1, 0.18, 0.12, 0.12],
        ]
    )
    torch.testing.assert_close(edited[0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(taken.flatten(), torch.tensor([0, 0.18, 0.18, 0.18, 0.15]))
    assert torch.equal(edited[0, 0, 0], WEIGHTS[0])


def test_vector_of_a_new_row() -> None:
    row = torch.tensor([0.45, 0.05, 0.02, 0.30, 0.08, 0.10])[None, None, None]
    sinks = torch.tensor([False, False, False, True, False, False])[None, None, None]
    edited, _ = spread_sinks(row, sinks, sink_keep_fraction=0.4)
    expected = torch.tensor([0.565714, 0.062857, 0.025143, 0.120000, 0.100571, 0.125714])
    torch.testing.assert_close(edited.flatten(), expected, atol=1e-6, rtol=0)
    assert torch.equal(spread_sinks(row, sinks, sink_keep_fraction=1.0)[0], row)


def test_a_row_that_looks_at_sinks_alone_is_left() -> None:
    row = torch.tensor([0.0, 1.0, 0.0])[None, None, None]
    edited, taken = spread_sinks(row, torch.tensor([False, True, False]), sink_keep_fraction=0.4)
    assert torch.equal(edited, row)
    assert float(taken) == 0


def expected_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], heads: Any, rows: str, images: bool
) -> tuple[Tensor, int]:
    """Logits under the edit in slow loops: one pass without it in each layer finds the means of the columns,
    as layers before are edited already; and how many sinks there were."""
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    length = image.shape[1]
    first = inputs["attention_mask"].argmax(dim=1).tolist()
    plain: dict[tuple[int, int], dict[int, Tensor]] = {}
    sinks: dict[tuple[int, int, int], set[int]] = {}

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        own = [head for each, head in heads if each == layer]
        if not own or position < first[sample] or not image[sample].any():
            return None
        weights = scores.softmax(dim=-1)
        plain.setdefault((layer, sample), {})[position] = weights.clone()
        for head in own:
            chosen = sinks.get((layer, sample, head))
            if chosen is None:
                continue  # the means are not known yet
            if rows == "row" and position >= length:
                seen = position + 1 - first[sample]
                chosen = {
                    key
                    for key in range(first[sample] + 1, position + 1)
                    if weights[head, key] > 1.2 / seen and (images or key >= length or not image[sample, key])
                }
            on_sinks = sum(float(weights[head, key]) for key in chosen)
            rest = 1 - on_sinks
            for key in range(len(weights[head])):
                weights[head, key] *= 0.3 if key in chosen else 1 + 0.7 * on_sinks / rest
        return weights

    for layer in sorted({each for each, _ in heads}):
        with full_matrices(model, edit), torch.no_grad():
            model(**inputs)
        for (of, sample), found in plain.items():
            for head in [head for each, head in heads if of == layer == each]:
                begin = first[sample]
                means = {
                    key: sum(float(found[row][head, key]) for row in range(key, length)) / (length - key)
                    for key in range(begin + 1, length)
                }
                sinks[layer, sample, head] = {
                    key
                    for key, mean in means.items()
                    if mean > 1.2 / (length - begin) and (images or not image[sample, key])
                }
    with full_matrices(model, edit):
        return step_logits(model, inputs), sum(map(len, sinks.values()))


@pytest.mark.parametrize(
    ("family", "kwargs", "images"),
    [
        ("llava", {}, True),
        ("qwen3_vl", {"decode_sinks": "row"}, True),
        ("llava", {"decode_sinks": "row"}, False),
    ],
)
def test_model_against_naive_full_matrices(
    family: str,
    kwargs: Any,
    images: bool,
    models: dict[str, PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In blocks of a few rows, of which all are seen before the first is edited; with and without a cache."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    expected, sinks = expected_logits(model, inputs, HEADS, kwargs.get("decode_sinks", "prefill"), images)
    assert sinks > 0
    monkeypatch.setattr(attention_rows, "_BLOCK", 2000)
    method = vlmfix.ACT(
        sink_ratio=1.2,
        sink_keep_fraction=0.3,
        heads=HEADS,
        first_layer=1,
        image_tokens_may_be_sinks=images,
        **kwargs,
    )
    with method(model):
        found = step_logits(model, inputs)
        without_cache = step_logits(model, inputs | {"use_cache": False})
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(without_cache, expected, atol=2e-5, rtol=1e-4)
    assert (found - step_logits(model, inputs)).abs().max() > 1e-3
    assert method.edit_stats().layers_edited == [1, 3]
    assert method.edit_stats().details["sinks"] > 0


def test_all_heads_are_those_of_all_layers_in_between(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    listed = tuple((layer, head) for layer in (2, 3) for head in range(4))
    logits = []
    for heads in ("all", listed):
        with vlmfix.ACT(sink_ratio=1.2, heads=heads)(llava):
            logits.append(step_logits(llava, inputs))
    torch.testing.assert_close(*logits)


def test_without_sinks_it_says_so(llava: PreTrainedModel) -> None:
    for kwargs, message in (
        ({"sink_ratio": 500}, "gets 500 times its share of the attention"),
        ({"sink_rule": "absolute", "sink_absolute_threshold": 1.0}, "gets a mean attention above 1 in the"),
    ):
        method = vlmfix.ACT(heads="all", **kwargs)  # type: ignore[arg-type]
        with method(llava), pytest.warns(vlmfix.InactiveMethodWarning, match=message):
            llava.generate(**families.prompt("llava", llava), max_new_tokens=2)


def test_without_heads_it_refuses(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"no heads are known .* or heads='all'"):
        vlmfix.ACT()(llava).__enter__()
    assert vlmfix.ACT(heads=()).is_identity


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"heads": ((1, 0),)}, r"heads has \(1, 0\); layers are edited from first_layer=2 to last_layer=3"),
        ({"heads": ((2, 4),)}, "heads go from 0 to 3"),
        (
            {"heads": "all", "first_layer": 4},
            "first_layer is 4 and last_layer 3; the layers of this model go",
        ),
    ],
)
def test_what_the_model_does_not_have(parameters: Any, message: str, llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.ACT(**parameters)(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sink_keep_fraction": 1.1}, "sink_keep_fraction is 1.1; it must be a number from 0 to 1"),
        ({"sink_rule": "mean"}, "sink_rule is 'mean'"),
        ({"decode_sinks": "none"}, "decode_sinks is 'none'"),
        ({"heads": "some"}, "heads is 'some'; it must hold pairs of layer and head"),
        ({"last_layer": 1}, "last_layer is 1; it must be a whole number from 2 on"),
    ],
)
def test_values_out_of_range_are_named(parameters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.ACT(**parameters)
