"""ONLY: the formulas on worked examples and against loops, and answers worked out without a cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import vlmfix
from tests.support import families, layer_reference
from vlmfix.methods.logits.base import plausible
from vlmfix.methods.logits.only import TextHeads, agreement, mix_branch

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
INF = torch.inf

HEADS = torch.tensor(
    [
        [0.30, 0.05, 0.05, 0.10, 0.20, 0.05, 0.05, 0.10, 0.10],
        [0.10, 0.02, 0.30, 0.06, 0.05, 0.04, 0.05, 0.18, 0.20],
        [0.20, 0.05, 0.05, 0.05, 0.40, 0.05, 0.05, 0.05, 0.10],
    ]
)[None]
TEXT = torch.tensor([[False, True, True, False, False, False, False, True, True]])
IMAGE = torch.tensor([[False, False, False, True, True, True, True, False, False]])


def test_heads_of_the_worked_example() -> None:
    heads = TextHeads.of(HEADS, TEXT, IMAGE)
    torch.testing.assert_close(heads.ratios, torch.tensor([[1.278864, 0.782612, 1.0]]), atol=2e-6, rtol=0)
    assert float(heads.ratios.mean()) == pytest.approx(1.020492, abs=2e-6)
    # Of the text, no weight is above 0.103868; of the image, the one above 0.170711 goes.
    first = HEADS[0, 0].clone()
    first[4] = 0
    assert torch.equal(heads.weights[0], torch.stack([first, torch.zeros(9), torch.zeros(9)]))


@pytest.mark.parametrize(
    ("branch", "distance", "expected"),
    [
        ([1.9, 1.1, 0.5, -1.0, -3.0], 0.076535, [7.7, 4.3, 2.0]),
        ([1.0, 1.5, 0.2, -1.0, -2.0], 0.604768, [3.0, 0.5, 0.8]),
    ],
)
def test_gate_of_the_worked_example(branch: list[float], distance: float, expected: list[float]) -> None:
    other = torch.tensor([branch])
    assert agreement(LOGITS, other, distance + 1e-5).all()
    assert not agreement(LOGITS, other, distance - 1e-5).any()
    mixed = mix_branch(LOGITS, other, agreement(LOGITS, other, 0.25), alpha_agree=3.0, alpha_differ=1.0)
    torch.testing.assert_close(mixed[0, :3], torch.tensor(expected))


def test_every_sequence_has_its_own_gate() -> None:
    branch = torch.tensor([[1.9, 1.1, 0.5, -1.0, -3.0], [1.0, 1.5, 0.2, -1.0, -2.0]])
    logits = LOGITS.expand(2, -1)
    agree = agreement(logits, branch, 0.25)
    assert agree.tolist() == [[True], [False]]
    mixed = mix_branch(logits, branch, agree, alpha_agree=3.0, alpha_differ=1.0)
    torch.testing.assert_close(mixed[:, :3], torch.tensor([[7.7, 4.3, 2.0], [3.0, 0.5, 0.8]]))
    banned = torch.where(torch.tensor([True, False, False, False, False]), -INF, logits)
    mixed = mix_branch(
        banned,
        torch.full_like(branch, -INF).where(branch > 1, branch),
        agree,
        alpha_agree=1.0,
        alpha_differ=1.0,
    )
    assert (mixed[:, 0] == -INF).all()
    assert not mixed.isnan().any()


def text_heads(weights: list[list[float]], text: list[int], image: list[int]) -> list[list[float]]:
    """What is left of the weights of one row, in double precision, a number at a time."""

    def without_strong(row: list[float], keys: list[int]) -> list[float]:
        own = [row[key] for key in keys]
        mean = sum(own) / len(own)
        cut = mean + math.sqrt(sum((weight - mean) ** 2 for weight in own) / (len(own) - 1))
        return [0.0 if weight > cut else weight for weight in own]

    def entropy(own: list[float]) -> float:
        shares = [weight / sum(own) for weight in own]
        return -sum(share * math.log(share + 1e-6) for share in shares)

    left, ratios = [], []
    for row in weights:
        words, patches = without_strong(row, text), without_strong(row, image)
        kept = list(row)
        for key, weight in [*zip(text, words, strict=True), *zip(image, patches, strict=True)]:
            kept[key] = weight
        left.append(kept)
        ratios.append(entropy(words) / entropy(patches))
    mean = sum(ratios) / len(ratios)
    return [row if ratio >= mean else [0.0] * len(row) for row, ratio in zip(left, ratios, strict=True)]


def test_heads_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (3 * torch.randn(4, 8, 30, generator=generator)).softmax(dim=-1)
    image = torch.zeros(4, 30, dtype=torch.bool)
    for row in range(4):
        image[row, 3 + row : 12 + 2 * row] = True
    text = ~image
    text[:, :2] = False  # the first token, and padding before it
    heads = TextHeads.of(weights, text, image).weights
    for row in range(4):
        expected = text_heads(
            weights[row].double().tolist(),
            text[row].nonzero().flatten().tolist(),
            image[row].nonzero().flatten().tolist(),
        )
        torch.testing.assert_close(heads[row], torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_heads_without_text_or_image() -> None:
    """A head that sees no image counts as bound to it, and so does one that sees no text."""
    weights = torch.tensor(
        [[[0.2, 0.0, 0.0, 0.4, 0.4], [0.2, 0.4, 0.4, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]]]
    )
    text = torch.tensor([[False, True, True, False, False]])
    heads = TextHeads.of(weights, text, torch.tensor([[False, False, False, True, True]]))
    assert heads.ratios.tolist() == [[0.0, 0.0, 1.0]]
    assert torch.equal(heads.weights[0], torch.stack([torch.zeros(5), torch.zeros(5), weights[0, 2]]))
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    assert torch.equal(TextHeads.of(weights, nothing, nothing).weights, weights)


@torch.no_grad()
def reference(model: PreTrainedModel, inputs: dict[str, Tensor], method: vlmfix.ONLY) -> Tensor:
    """Mixed logits of the next token of a batch of one, from all that an eager model returns."""
    output = model(**inputs, use_cache=False, output_hidden_states=True, output_attentions=True)
    logits = output.logits[0, -1].float()
    image = (inputs["input_ids"][0] == families.IMAGE_TOKEN).nonzero().flatten().tolist()
    if not image:
        return logits
    weights = output.attentions[method.layer][0, :, -1]
    text = [key for key in range(1, weights.shape[-1]) if key not in image]
    left = text_heads(weights.double().tolist(), text, image)
    layer, last = model.get_decoder().layers[method.layer], model.get_decoder().layers[-1]
    values = layer.self_attn.v_proj(layer.input_layernorm(output.hidden_states[method.layer]))[0]
    values = values.view(len(values), 2, -1)
    heads = [torch.tensor(row) @ values[:, head // 2] for head, row in enumerate(left)]
    branch = last.input_layernorm(layer.self_attn.o_proj(torch.cat(heads)))
    branch = branch + 0.2 * output.hidden_states[-2][0, -1]
    branch = branch + last.mlp(last.post_attention_layernorm(branch))
    final = model.get_decoder().norm(branch) + 0.5 * output.hidden_states[-1][0, -1]
    other = model.get_output_embeddings()(final).float()
    distance = float((logits.softmax(-1) - other.softmax(-1)).abs().sum())
    if distance < method.threshold:
        mixed = logits + method.alpha_agree * other
    else:
        mixed = logits + method.alpha_differ * (logits - other)
    return torch.where(plausible(logits[None], method.beta)[0], mixed, -INF)


@pytest.mark.parametrize(
    "parameters",
    # Layer 3 is after those where Qwen3-VL adds to the stream what no hidden state shows.
    [{"threshold": 0.1}, {"threshold": 0.0, "layer": 3}, {"threshold": 2.0, "layer": 4, "beta": 0.0}],
    ids=["some agree", "differ", "agree"],
)
def test_against_brute_force(parameters: dict[str, Any], model: PreTrainedModel, family: str) -> None:
    eager = families.build(family, attn_implementation="eager")
    method = vlmfix.ONLY(**parameters)
    inputs = families.prompt(family, model, (1, 2, 0))
    rows = []
    for single in families.split(family, model, inputs):
        new: list[int] = []
        steps = []
        for _ in range(6):
            steps.append(reference(eager, families.continued(single, new), method))
            new.append(int(steps[-1].argmax()))
        rows.append(torch.stack(steps))
    with method(model):
        got = layer_reference.generated(model, inputs)
    torch.testing.assert_close(got, torch.stack(rows, dim=1), atol=1e-4, rtol=1e-4)
    edit_stats = method.edit_stats()
    assert edit_stats.size is not None
    if parameters["threshold"] == 0.1:
        assert 0 < edit_stats.size < 1
    else:
        assert edit_stats.size == parameters["threshold"] / 2  # the share of steps that agree


def test_beams_follow(model: PreTrainedModel, family: str) -> None:
    inputs = families.prompt(family, model, (1, 1, 0))
    outputs = []
    for kwargs in ({}, {"use_cache": False}):
        with vlmfix.ONLY()(model):
            outputs.append(model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=4, **kwargs))
    assert torch.equal(*outputs)


def test_the_cut_alone_has_no_branch(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    stock = layer_reference.generated(llava, inputs)[0]
    with vlmfix.ONLY(alpha_agree=0, alpha_differ=0, beta=0.9)(llava):
        cut = layer_reference.generated(llava, inputs)[0]
    assert torch.equal(cut, torch.where(plausible(stock, 0.9), stock, -INF))


def test_refusals(llava: PreTrainedModel) -> None:
    for make, words in (
        (lambda: vlmfix.ONLY(alpha_agree=-1), "from 0 to 100"),
        (lambda: vlmfix.ONLY(threshold=2.1), "from 0 to 2"),
        (lambda: vlmfix.ONLY(layer=-1), "0 or more"),
        (lambda: vlmfix.ONLY(layer=(1,)), "0 or more"),
        (lambda: vlmfix.ONLY(layer=5)(llava).__enter__(), "go from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "persimmon"},
        {"model_type": "cohere"},
        {"model_type": "granite", "residual_multiplier": 0.2},
    ],
    ids=lambda text: text["model_type"],
)
def test_layers_of_another_build_are_refused(text: dict[str, Any]) -> None:
    config = AutoConfig.for_model(
        "llava",
        text_config={**families.TEXT, **text},
        vision_config={"model_type": "clip_vision_model", **families.VISION},
        image_token_index=families.IMAGE_TOKEN,
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    with pytest.raises(vlmfix.UnsupportedError, match="is not a plain layer"):
        vlmfix.ONLY()(model).__enter__()
    assert not model._forward_hooks
