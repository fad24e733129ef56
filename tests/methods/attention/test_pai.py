"""PAI: the vector of its specification, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import (
    Inputs,
    check_branches,
    images_of,
    in_some_ways,
    text_ids,
    text_logits,
)
from tests.support.full_matrices import full_matrices, step_logits
from tests.support.spec_rows import IMAGE, SCORES
from vlmfix.methods.attention.pai import amplify, guide
from vlmfix.methods.logits.base import plausible

EXPECTED = torch.tensor(
    [
        [0.370608, 0.082694, 0.166525, 0.022537, 0.050156, 0.082694, 0.224785],
        [0.153121, 0.034166, 0.011373, 0.091033, 0.237752, 0.416225, 0.056330],
    ]
)


def test_vector() -> None:
    weights = amplify(SCORES, 0.2 * IMAGE).softmax(dim=-1)
    torch.testing.assert_close(weights[0, :, 0], EXPECTED, atol=1e-6, rtol=0)


def test_image_attention_grows_whatever_the_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, 4, 3, 7, generator=generator)
    edited = amplify(scores, 0.5 * IMAGE)
    text = ~IMAGE.bool().expand_as(scores)
    assert torch.equal(edited[text], scores[text])
    masses = [(each.softmax(dim=-1) * IMAGE).sum(dim=-1) for each in (edited, scores)]
    assert (masses[0] > masses[1]).all()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize(("layers", "edited"), [(None, range(5)), ((1, 3), (1, 2))])
def test_model_against_naive_full_matrices(
    family: str, layers: Any, edited: Any, models: dict[str, PreTrainedModel]
) -> None:
    """The last prompt row and new ones are edited; 2 to 31 of 32 layers are 0 to 4 of 5."""
    model = models[family]
    inputs = families.prompt(family, model, (2, 0, 1))
    image = inputs["input_ids"] == families.IMAGE_TOKEN
    last = image.shape[1] - 1

    def edit(layer: int, sample: int, position: int, scores: Tensor) -> Tensor | None:
        if layer not in edited or position < last:
            return None
        for key in image[sample].nonzero().flatten().tolist():
            for head in range(len(scores)):
                scores[head, key] += 0.7 * abs(float(scores[head, key]))
        return scores.softmax(dim=-1)

    with full_matrices(model, edit):
        expected = step_logits(model, inputs)
    with vlmfix.PAI(alpha=0.7, layers=layers)(model):
        found = step_logits(model, inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert (found - step_logits(model, inputs))[:, [0, 2]].abs().amax(dim=(0, 2)).min() > 1e-3


def test_the_prompt_is_read_once_and_its_last_token_again(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    lengths: list[int] = []
    mlp = llava.get_decoder().layers[0].mlp
    handle = mlp.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    with vlmfix.PAI()(llava):
        llava.generate(**inputs, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert lengths == [inputs["input_ids"].shape[1], 1, 1, 1]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -0.1}, r"alpha is -0.1; it must be a number from 0 to 100"),
        ({"alpha": float("nan")}, r"alpha is nan"),
        ({"layers": (3, 3)}, r"layers is \(3, 3\); it must be the first edited layer"),
        ({"layers": 4}, r"layers is 4"),
        ({"layers": (-1, 4)}, r"layers is \(-1, 4\)"),
        ({"layers": (0.5, 4)}, r"layers is \(0.5, 4\)"),
        ({"gamma": 0.9}, r"gamma is 0.9; it must be a number from 1 to 100"),
        ({"beta": 2}, r"beta is 2; it must be a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.PAI(**parameters)


def test_layers_beyond_the_model(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="go from 0 to 4"), vlmfix.PAI(layers=[2, 6])(llava):
        pass


def test_guidance_vector() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
    mixed = guide(logits, torch.tensor([[1.5, 1.2, -0.5, -1.0, 0.0]]), 1.1)
    expected = torch.tensor([-0.471213, -1.541213, -1.921213])
    torch.testing.assert_close(mixed[0, :3], expected, atol=1e-6, rtol=0)
    shares = mixed.masked_fill(~plausible(logits, 0.1), -torch.inf).softmax(-1)[0]
    torch.testing.assert_close(shares, torch.tensor([0.633883, 0.217427, 0.148690, 0, 0]), atol=1e-6, rtol=0)


def test_guidance_against_its_other_form() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, branch = (torch.randn(4, 9, generator=generator) for _ in range(2))
    own, other = logits.log_softmax(-1), branch.log_softmax(-1)
    torch.testing.assert_close(guide(logits, branch, 1.7), other + 1.7 * (own - other))
    assert torch.equal(guide(logits, branch, 1.0), own)


@in_some_ways
def test_guidance_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    """Without an edit of attention, the prompts are those of the stock model."""
    inputs = families.prompt(family, model, images_of(family, way))

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        return [text_logits(model, [*text_ids(model, single), *new])]

    method = vlmfix.PAI(alpha=0, gamma=1.5, beta=0.001, fused=fused)
    check_branches(model, family, method, inputs, alone, **way)


@pytest.mark.parametrize("fused", [True, False])
def test_both_parts_are_the_guidance_of_edited_logits(fused: bool, llava: PreTrainedModel) -> None:
    """The branch knows nothing of the edit; tokens are forced, so that every reading says the same."""
    inputs = families.prompt("llava", llava, (1, 2))
    with vlmfix.PAI(alpha=0, gamma=2.0, beta=0.0)(llava):
        chosen = llava.generate(**inputs, max_new_tokens=4, do_sample=False)

    def forced(method: vlmfix.Method) -> Tensor:
        def allowed(row: int, ids: Tensor) -> list[int]:
            return [int(chosen[row, len(ids)])]

        with method(llava):
            output = llava.generate(
                **inputs,
                max_new_tokens=4,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                prefix_allowed_tokens_fn=allowed,
            )
        return torch.stack(output.logits)

    stock, edited = forced(vlmfix.PAI(alpha=0)), forced(vlmfix.PAI(alpha=1.0))
    guided = forced(vlmfix.PAI(alpha=0, gamma=2.0, beta=0.0, fused=fused))
    both = forced(vlmfix.PAI(alpha=1.0, gamma=2.0, beta=0.0, fused=fused))
    branch = 2 * stock.log_softmax(-1) - guided  # with a gamma of 2, up to a constant
    expected = 2 * edited.log_softmax(-1) - branch
    torch.testing.assert_close(both.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert (both - guided).abs().max() > 1e-2


def test_guidance_owns_the_logits_and_attention_alone_does_not(llava: PreTrainedModel) -> None:
    assert not vlmfix.PAI().owns_logits
    assert vlmfix.PAI(gamma=1.1).owns_logits
    assert vlmfix.PAI(alpha=0).is_identity
    assert not vlmfix.PAI(alpha=0, gamma=1.1).is_identity
    with vlmfix.M3ID()(llava):
        with vlmfix.PAI()(llava):
            llava.generate(**families.prompt("llava", llava), max_new_tokens=2)
        with pytest.raises(vlmfix.UnsupportedError, match="M3ID defines the logits of this model already"):
            vlmfix.PAI(gamma=1.1)(llava).__enter__()


def test_guidance_alone_reads_no_row_again(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    rows: list[tuple[int, int]] = []
    mlp = llava.get_decoder().layers[0].mlp
    handle = mlp.register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape[:2])))
    with vlmfix.PAI(alpha=0, gamma=1.5)(llava):
        llava.generate(**inputs, max_new_tokens=3, do_sample=False)
    handle.remove()
    images = (inputs["input_ids"][0] == families.IMAGE_TOKEN).nonzero()
    length = inputs["input_ids"].shape[1]
    behind = length - 1 - int(images.max())  # the text before the image has been read with it
    assert rows == [(1, length), (1, behind), (2, 1), (2, 1)]
