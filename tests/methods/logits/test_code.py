"""CODE: the vector of its specification, and its description and branch made by the stock model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.branches import Inputs, check_branches, images_of, text_logits, with_ids
from tests.support.methods import values
from vlmfix.methods.logits.code import _asked_anew, counter, divergence

pytestmark = pytest.mark.filterwarnings("ignore::vlmfix.engine.stats.InactiveMethodWarning")

LOGITS, BRANCH = torch.tensor([[2, 1, 0.5, -1, -3]]), torch.tensor([[1.5, 1.2, -0.5, -1, 0]])
DESCRIBED = 5
REQUEST = "w20"


def test_vector() -> None:
    apart = divergence(LOGITS, BRANCH, 0.2)
    torch.testing.assert_close(apart, torch.tensor([[0.722805]]))
    out = counter(LOGITS, BRANCH, apart, 1.0)
    torch.testing.assert_close(out[0, 0], torch.tensor(2.138597))
    torch.testing.assert_close(out.softmax(dim=-1), torch.tensor([[1.0, 0, 0, 0, 0]]))
    assert out[0].argsort(descending=True).tolist() == [0, 1, 2, 3, 4]


def test_equal_branches_change_nothing() -> None:
    apart = divergence(LOGITS, LOGITS, 0.2)
    assert apart.item() == 0
    assert torch.equal(counter(LOGITS, LOGITS, apart, 1.0), LOGITS)


def test_distributions_without_a_common_token_are_1_apart() -> None:
    one, other = torch.tensor([[50.0, 0, 0]]), torch.tensor([[0, 50.0, -torch.inf]])
    torch.testing.assert_close(divergence(one, other, 0.2), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("words", "block", "expected"),
    [
        ([4, 6], [2, 3], [1, 2, 3, "new", 7]),  # what stands between two words leaves, too
        ([1, 6], [2, 3], [2, 3, "new", 7]),  # words around an image
        ([1, 2], [5, 6], ["new", 3, 4, 5, 6, 7]),
        ([], [2, 3], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_other_words_in_the_place_of_the_question(
    words: list[int], block: list[int], expected: list[Any]
) -> None:
    shown = [column in block for column in range(8)]
    tokens = _asked_anew(1, shown, words, [77])
    assert ["new" if token.id == 77 else token.column for token in tokens] == expected


def described(model: PreTrainedModel, single: Inputs, limit: int) -> list[int]:
    """What the stock model answers to a prompt that ends with a request after its last image."""
    ids = single["input_ids"][0].tolist()
    last = max(place for place, token in enumerate(ids) if token == families.VISION_END)
    inputs = with_ids(single, [*ids[: last + 1], 20])
    output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    new: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return new[: new.index(end)] if end in new else new


def without_images(single: Inputs, caption: list[int]) -> list[int]:
    """A prompt with a description in the place of its first image, and nothing in that of the others."""
    ids: list[int] = []
    inside = False
    for token in single["input_ids"][0].tolist():
        inside = inside or token == families.VISION_START
        if token == families.VISION_END:
            ids, caption, inside = ids + caption, [], False
        elif not inside:
            ids.append(token)
    return ids


@pytest.mark.parametrize(
    ("family", "way", "fused"),
    [
        pytest.param("llava", {"num_beams": 4}, False, id="llava-beams, not fused"),
        pytest.param("qwen2_5_vl", {}, True, id="qwen2_5_vl-greedy"),
        pytest.param("qwen3_vl", {"num_beams": 4}, True, id="qwen3_vl-beams"),
    ],
)
def test_branch_equals_brute_force(
    model: PreTrainedModel, family: str, way: dict[str, Any], fused: bool
) -> None:
    inputs = families.prompt(family, model, images_of(family, way))
    method = vlmfix.CODE(alpha=2.0, caption_tokens=DESCRIBED, caption_prompt=REQUEST, fused=fused)

    def alone(single: Inputs, new: list[int]) -> list[Tensor]:
        ids = without_images(single, described(model, single, DESCRIBED))
        return [text_logits(model, [*ids, *new])]

    check_branches(model, family, method, inputs, alone, steps=3, **way)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_descriptions_end_by_themselves(
    family: str, models: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a batch at different lengths; a prompt without an image writes none."""
    model = models[family]
    inputs = families.prompt(family, model, (1, 2, 0))
    singles = families.split(family, model, inputs)[:2]
    whole = [described(model, single, DESCRIBED) for single in singles]
    monkeypatch.setattr(model.generation_config, "eos_token_id", whole[0][2])
    expected = [described(model, single, DESCRIBED) for single in singles]
    assert len(expected[0]) <= 2
    assert len(expected[0]) != len(expected[1])
    found: list[Any] = []

    class Watched(vlmfix.CODE):
        def branches(self, context: Any, *args: Any) -> Any:
            found.extend(context.state[self, "captions"])
            return super().branches(context, *args)

    method = Watched(caption_tokens=DESCRIBED, caption_prompt=REQUEST)
    with method(model, families.PROCESSOR):
        values(model, inputs, max_new_tokens=2, eos_token_id=None)
    assert [list(each) for each in found] == [*expected, []]
    stats = method.edit_stats()
    assert stats.size is not None
    assert 0 < stats.size < 1


def test_a_prompt_without_a_question_is_declined(llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava)
    ids = inputs["input_ids"][0].tolist()
    image = slice(ids.index(families.VISION_START), ids.index(families.VISION_END) + 1)
    inputs |= {name: inputs[name][:, image] for name in ("input_ids", "attention_mask")}
    stock = values(llava, inputs, max_new_tokens=2)
    method = vlmfix.CODE(caption_tokens=2)
    with method(llava, families.PROCESSOR):
        torch.testing.assert_close(values(llava, inputs, max_new_tokens=2), stock)
    assert method.edit_stats().rows_skipped == {"no question in the prompt": 1}


def test_a_prompt_whose_description_is_empty_is_declined(
    llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = families.prompt("llava", llava)
    stock = values(llava, inputs, max_new_tokens=2, eos_token_id=None)
    monkeypatch.setattr(llava.generation_config, "eos_token_id", list(range(families.VOCABULARY)))
    method = vlmfix.CODE(caption_tokens=2)
    with method(llava, families.PROCESSOR):
        torch.testing.assert_close(values(llava, inputs, max_new_tokens=2, eos_token_id=None), stock)
    assert method.edit_stats().rows_skipped == {"the model wrote no description of the image": 1}


def test_it_needs_the_processor(llava: PreTrainedModel) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match="CODE needs the processor"):
        vlmfix.CODE()(llava).__enter__()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha is -1; it must be"),
        ({"exponent": 0}, "exponent is 0; it must be a number from 0.01 to 10"),
        ({"caption_tokens": 0}, "caption_tokens is 0; it must be a whole number from 1 on"),
        ({"caption_prompt": " "}, "caption_prompt is ' '; it must be a text"),
    ],
)
def test_values_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vlmfix.CODE(**parameters)
