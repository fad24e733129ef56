"""Prompt layouts: image tokens that need not be contiguous, padding, and the rows after the last image."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.kernels import ATTRIBUTE
from vlmfix.engine.layout import PromptLayout, Rows


def mask(text: str) -> torch.Tensor:
    """One sample a word; `1` is True."""
    return torch.tensor([[letter == "1" for letter in word] for word in text.split()])


def test_rows_behind_the_last_image() -> None:
    layout = PromptLayout.from_image_tokens(
        mask("0110100 0000110 0000000"), mask("1111111 0001111 1111111").int()
    )
    assert torch.equal(layout.after_last_image, mask("0000011 0000001 0000000"))
    assert layout.rows_after_last_image.index.tolist() == [5, 6]
    assert torch.equal(layout.rows_after_last_image.mask, mask("11 01 00"))
    assert layout.has_image


def test_text_in_front_of_the_first_image_and_behind_the_last_one_survive_a_pruning() -> None:
    """Also where no image token is left."""
    layout = PromptLayout.from_image_tokens(
        mask("0110100 0000110 0000000"), mask("1111111 0001111 1111111").int()
    )
    assert torch.equal(layout.before_first_image, mask("1000000 0001000 0000000"))
    narrower, _ = layout.select(~layout.image_tokens)
    assert not narrower.has_image
    assert narrower.before_first_image.sum(dim=1).tolist() == [1, 1, 0]
    assert narrower.after_last_image.sum(dim=1).tolist() == [2, 1, 0]


def test_masks_over_all_keys() -> None:
    layout = PromptLayout.from_image_tokens(mask("010 000"), None)
    assert torch.equal(layout.over_keys(layout.image_tokens, 5), mask("01000 00000"))
    generated = torch.tensor([True, False])
    assert torch.equal(layout.over_keys(layout.after_last_image, 5, generated=generated), mask("00111 00000"))


def test_padding_is_never_an_image() -> None:
    layout = PromptLayout.from_image_tokens(mask("1100"), mask("0111"))
    assert torch.equal(layout.image_tokens, mask("0100"))


def test_union_of_rows() -> None:
    first, second = Rows.where(mask("0110 0010")), Rows.where(mask("0001 0100"))
    union = first | second
    assert union.index.tolist() == [1, 2, 3]
    assert torch.equal(union.mask, mask("111 110"))
    assert torch.equal(first.mask_in(union), mask("110 010"))


@pytest.mark.parametrize(
    ("attention_mask", "message"),
    [
        (mask("1110"), "padding_side='left'"),
        (mask("111"), r"2-D mask of the whole prompt, \(1, 4\)"),
        (torch.ones(1, 1, 4, 4), r"\(1, 1, 4, 4\)"),
        ({"full_attention": None}, "dict"),
    ],
    ids=["right padding", "other length", "4-D", "mapping"],
)
def test_masks_that_are_refused(attention_mask: torch.Tensor, message: str) -> None:
    with pytest.raises(vlmfix.UnsupportedError, match=message):
        PromptLayout.from_image_tokens(mask("0100"), attention_mask)


def test_layout_of_every_family(family: str, model: PreTrainedModel) -> None:
    """The layout of a batch is that of its samples, shifted by the padding."""
    inputs = families.prompt(family, model, (1, 2, 0))
    layouts: list[PromptLayout] = []

    class Reading(vlmfix.Method):
        identity_parameters: ClassVar = {"strength": 0}
        strength = 1

        def enter_layer(self, context: DecodeContext, layer: int, hidden_states: torch.Tensor) -> None:
            if layer == 0:
                layouts.append(context.layout)

    with Reading()(model), torch.no_grad():
        model(**inputs)
        for single in families.split(family, model, inputs):
            model(**single)
    batch, *singles = layouts
    for row, single in enumerate(singles):
        padding = batch.length - single.length
        assert not batch.real_tokens[row, :padding].any()
        for name in ("image_tokens", "real_tokens", "before_first_image", "after_last_image"):
            assert torch.equal(getattr(batch, name)[row, padding:], getattr(single, name)[0])
    assert batch.image_tokens.sum(dim=1).tolist() == [
        (ids == families.IMAGE_TOKEN).sum() for ids in inputs["input_ids"]
    ]
    assert ATTRIBUTE not in vars(model.get_decoder())


# Which of its tokens each token of a prompt sees, where 0110110 are image tokens: Gemma 3.
SEEN = ["1000000", "1110000", "1110000", "1111000", "1111110", "1111110", "1111111"]


def rows(*bits: str) -> torch.Tensor:
    return torch.tensor([[bit == "1" for bit in row] for row in bits])


def gemma_layout() -> PromptLayout:
    layout = PromptLayout(rows("0110110"), rows("1111111"))
    layout.takes_over(
        {"full_attention": rows(*SEEN)[None, None], "sliding_attention": rows(*SEEN)[None, None]}
    )
    return layout


def test_tokens_that_see_later_ones() -> None:
    layout = gemma_layout()
    cpu = torch.device("cpu")
    seen = layout.attention_mask(7, 7, cpu)
    assert seen is not None
    assert torch.equal(seen[0, 0], rows(*SEEN))
    assert not layout.sees_ahead
    assert layout.attention_mask(1, 8, cpu) is None  # a generated token sees all
    both = layout.attention_mask(9, 9, cpu)
    assert both is not None
    assert torch.equal(both[0, 0, :7], torch.cat([rows(*SEEN), rows(*["00"] * 7)], dim=1))
    assert torch.equal(both[0, 0, 7:], rows("111111110", "111111111"))
    narrower, _ = layout.select(rows("1010111"))
    kept = narrower.attention_mask(5, 5, cpu)
    assert kept is not None
    assert torch.equal(kept[0, 0], rows("10000", "11000", "11110", "11110", "11111"))
    assert narrower.seen is not None


def test_prompts_that_are_seen_whole() -> None:
    layout = PromptLayout(rows("0110", "0011"), rows("1111", "0111"))
    layout.takes_over(torch.stack([rows(*["1111"] * 4), rows("1111", *["0111"] * 3)])[:, None])
    assert layout.sees_ahead


def test_layers_that_see_different_tokens_are_refused() -> None:
    layout = PromptLayout(rows("0110"), rows("1111"))
    whole, plain = rows(*["1111"] * 4)[None, None], None
    with pytest.raises(vlmfix.UnsupportedError, match="shorter than the window of every layer"):
        layout.takes_over({"full_attention": whole, "sliding_attention": plain})
    layout.takes_over({"full_attention": None, "sliding_attention": None})
    assert layout.seen is None
