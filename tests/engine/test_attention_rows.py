"""Explicit rows: every hook sees and edits what it should, and nothing else changes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import acting, attached, values
from vlmfix.engine import attention_rows
from vlmfix.engine.attention_formulas import softcapped, softmax
from vlmfix.engine.context import DecodeContext
from vlmfix.engine.layout import Rows

pytestmark = pytest.mark.promises


@dataclass(frozen=True, kw_only=True)
class Toy(vlmfix.Method):
    """Asks for the rows after the last image in every layer; subclasses edit."""

    identity_parameters: ClassVar = {"strength": 0.0}
    strength: float = 1.0

    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return context.layout.rows_after_last_image


class Identity(Toy):
    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        return weights.clone()


class FirstKey(Toy):
    """All attention on the first real key, by the scores."""

    def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
        first = context.layout.real_tokens.int().argmax(dim=1)
        boost = torch.zeros(scores.shape[0], 1, 1, scores.shape[-1])
        boost[torch.arange(len(first)), 0, 0, first] = 1e4
        return scores + boost


class FirstKeyWeights(Toy):
    """The same by the weights."""

    def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
        first = context.layout.real_tokens.int().argmax(dim=1)
        edited = torch.zeros_like(weights)
        edited[torch.arange(len(first)), :, :, first] = 1.0
        return edited


class NoHeads(Toy):
    def rows(self, context: DecodeContext, layer: int) -> Rows | None:
        return None

    def edit_heads(self, context: DecodeContext, layer: int, heads: Tensor) -> Tensor:
        return heads * 0


def logits(model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    output = model.generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )
    return torch.stack(output.logits)


def test_an_edit_that_changes_nothing_keeps_the_stock_model(family: str, model: PreTrainedModel) -> None:
    """To the bit in the prompt; edited decode rows are computed explicitly, equal but for rounding."""
    inputs = families.prompt(family, model, (1, 2, 0))
    stock = logits(model, inputs)
    with Identity()(model):
        edited = logits(model, inputs)
    assert torch.equal(edited[0], stock[0])
    torch.testing.assert_close(edited, stock, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_observed_weights_are_those_of_eager_attention(kernel: str, family: str) -> None:
    eager = families.build(family, attn_implementation="eager")
    inputs = families.prompt(family, eager, (1, 2))
    with torch.no_grad():
        expected = eager(**inputs, output_attentions=True).attentions
    seen: dict[int, Tensor] = {}

    class Observing(Toy):
        def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
            rows = context.layout.rows_after_last_image
            seen[layer] = torch.where(rows.mask[:, None, :, None], weights, 0)
            seen[-1] = rows.index

    model = families.build(family, attn_implementation=kernel)
    with Observing()(model), torch.no_grad():
        model(**inputs)
    rows = seen.pop(-1)
    assert sorted(seen) == list(range(families.LAYERS))
    for layer, weights in seen.items():
        wanted = (weights.sum(dim=-1, keepdim=True) > 0).float()
        torch.testing.assert_close(weights, expected[layer][:, :, rows] * wanted, atol=1e-5, rtol=1e-4)


def test_scores_and_weights_that_say_the_same_agree(family: str, model: PreTrainedModel) -> None:
    inputs = families.prompt(family, model, (1, 2, 0))
    with FirstKey()(model):
        by_scores = logits(model, inputs)
    with FirstKeyWeights()(model):
        by_weights = logits(model, inputs)
    torch.testing.assert_close(by_scores, by_weights, atol=1e-5, rtol=1e-5)
    assert not torch.equal(by_scores, logits(model, inputs))


def test_edits_of_scores_see_those_of_the_model_and_add_up(llava: PreTrainedModel) -> None:
    """In either order, also in the rows that only one of the methods wants."""
    inputs = families.prompt("llava", llava, (1, 2))

    @dataclass(frozen=True, kw_only=True)
    class Doubling(Toy):
        def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
            return 2 * scores

    @dataclass(frozen=True, kw_only=True)
    class Halving(Toy):
        def rows(self, context: DecodeContext, layer: int) -> Rows | None:
            return context.layout.last_row

        def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
            return 0.5 * scores

    @dataclass(frozen=True, kw_only=True)
    class Both(Toy):
        def edit_scores(self, context: DecodeContext, layer: int, scores: Tensor) -> Tensor:
            last = torch.arange(scores.shape[2]) == scores.shape[2] - 1
            return torch.where(last[:, None], 1.5, 2.0) * scores

    with Both()(llava):
        expected = logits(llava, inputs)
    for first, second in ((Doubling(), Halving()), (Halving(), Doubling())):
        with first(llava), second(llava):
            torch.testing.assert_close(logits(llava, inputs), expected, atol=1e-5, rtol=1e-5)


def test_heads_are_edited_in_all_rows(llava: PreTrainedModel) -> None:
    """With all heads at zero, attention adds nothing, as if its output projection were zero."""
    inputs = families.prompt("llava", llava, (1, 0))
    with NoHeads()(llava):
        edited = logits(llava, inputs)
    zeroed = families.build("llava")
    for layer in zeroed.get_decoder().layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.testing.assert_close(edited, logits(zeroed, inputs), atol=1e-6, rtol=0)


def test_methods_with_other_rows_edit_their_own_only(llava: PreTrainedModel) -> None:
    """The last row alone and all text rows, in one layer: each method changes the rows it asked for."""
    inputs = families.prompt("llava", llava, (1, 2))
    calls = []

    @dataclass(frozen=True, kw_only=True)
    class LastRow(Toy):
        def rows(self, context: DecodeContext, layer: int) -> Rows | None:
            last = torch.zeros_like(context.layout.real_tokens)
            last[:, -1] = True
            return context.state.setdefault(self, Rows.where(last)) if layer == 1 else None

        def edit_weights(self, context: DecodeContext, layer: int, weights: Tensor) -> Tensor:
            return torch.full_like(weights, 1 / weights.shape[-1])

        def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
            calls.append((weights.shape[2], (weights - 1 / weights.shape[-1]).abs().max().item()))

    @dataclass(frozen=True, kw_only=True)
    class Watching(Toy):
        def rows(self, context: DecodeContext, layer: int) -> Rows | None:
            return context.layout.rows_after_last_image if layer == 1 else None

        def observe(self, context: DecodeContext, layer: int, weights: Tensor) -> None:
            calls.append((weights.shape[2], (weights[:, :, :-1] - 1 / weights.shape[-1]).abs().max().item()))

    with FirstKeyWeights()(llava), LastRow()(llava), Watching()(llava), torch.no_grad():
        llava(**inputs)
    (rows, difference), (rows_of_text, difference_of_text) = calls
    assert (rows, difference) == (1, 0)
    assert rows_of_text > 1
    assert difference_of_text > 0.5


def test_softcap_and_sinks() -> None:
    """The vectors of `specs/platform/families.md`, section 6."""
    scores = torch.tensor([[[[2.0, 1.0, -1.0]]]])
    capped = softcapped(scores, 2.0)
    torch.testing.assert_close(capped, torch.tensor([[[[1.523188, 0.924234, -0.924234]]]]), atol=1e-6, rtol=0)
    weights = torch.tensor([0.611283, 0.335831, 0.052886])
    torch.testing.assert_close(softmax(capped)[0, 0, 0], weights, atol=1e-6, rtol=0)
    rest = softmax(scores, sinks=torch.tensor([0.5]))[0, 0, 0]
    torch.testing.assert_close(rest, torch.tensor([0.609460, 0.224208, 0.030343]), atol=1e-6, rtol=0)
    assert float(rest.sum()) == pytest.approx(0.864011, abs=1e-6)


def test_foreign_terms_of_the_scores_are_refused(llava: PreTrainedModel) -> None:
    from vlmfix.engine.attention_rows import observed_weights, with_explicit_rows

    query = torch.zeros(1, 1, 1, 4)
    with pytest.raises(vlmfix.UnsupportedError, match="adds position_bias to its attention"):
        with_explicit_rows([], None, 0, query, llava, query, query, query, None, position_bias=query)
    rows = Rows(torch.tensor([0]), torch.tensor([[True]]))
    with pytest.raises(vlmfix.UnsupportedError, match="adds position_bias to its attention"):
        observed_weights(llava, query, query, rows, None, position_bias=query)


@pytest.mark.parametrize("names", [("var",), ("vaf", "adhh"), ("gift",), ("adaptinfer", "var")])
def test_rows_in_blocks(
    names: tuple[str, ...], llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of a single row after the other: the same logits, and the same activity."""
    inputs = families.prompt("llava", llava, (1, 2, 0))
    outcomes = []
    for block in (attention_rows._BLOCK, 1):
        monkeypatch.setattr(attention_rows, "_BLOCK", block)
        methods = [acting(name) for name in names]
        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(method(llava, families.PROCESSOR))
            logits = values(llava, inputs, max_new_tokens=4)
        outcomes.append((logits, [method.edit_stats() for method in methods]))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], atol=1e-5, rtol=1e-5)
    for one, other in zip(*(activities for _, activities in outcomes), strict=True):
        assert (one.steps_edited, one.site_share) == (other.steps_edited, other.site_share)
        assert one.size is None or one.size == pytest.approx(other.size, rel=1e-4)


def test_observed_rows_beyond_the_memory_are_refused(
    llava: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = families.prompt("llava", llava, (1,))
    monkeypatch.setattr(attention_rows, "_BLOCK", 1)
    monkeypatch.setattr("os.sysconf", lambda name: 8)
    with (
        attached("adaptinfer", llava),
        pytest.raises(vlmfix.UnsupportedError, match=r"AdaptInfer looks at the attention of \d+"),
    ):
        llava.generate(**inputs, max_new_tokens=2, do_sample=False)
    with attached("var", llava):  # which only edits
        llava.generate(**inputs, max_new_tokens=2, do_sample=False)
