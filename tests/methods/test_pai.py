"""PAI: the vector of its specification, and models with naive full matrices."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from full_matrices import full_matrices, step_logits
from spec_rows import IMAGE, SCORES
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from vlmfix.methods.pai import amplify

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
    ],
)
def test_values_out_of_range_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.PAI(**parameters)


def test_layers_beyond_the_model(llava: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="go from 0 to 4"), vlmfix.PAI(layers=[2, 6])(llava):
        pass
