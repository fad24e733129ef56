"""Linear layers that take few rows the other way round: the same products, and the layers as they were."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from tests.support.methods import attached, built
from vlmfix.engine import few_rows


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """On every machine; the rows of each product that was taken the other way round."""
    return counting(monkeypatch, "few_rows")


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The same of products by blocks, and blocks so small that tiny layers have enough of them."""
    monkeypatch.setattr(few_rows, "_BLOCK", 16)
    return counting(monkeypatch, "in_blocks")


def counting(monkeypatch: pytest.MonkeyPatch, form: str) -> list[int]:
    rows: list[int] = []
    inner = getattr(few_rows, form)

    def counted(input: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(input.numel() // input.shape[-1])
        return inner(input, *rest)  # type: ignore[no-any-return]

    monkeypatch.setattr(few_rows, form, counted)
    monkeypatch.setattr(few_rows, "helps", lambda: True)
    return rows


@pytest.mark.parametrize("form", [few_rows.few_rows, few_rows.row_by_row])
@pytest.mark.parametrize("bias", [True, False])
def test_products(bias: bool, form: Callable[..., torch.Tensor]) -> None:
    layer = nn.Linear(24, 40, bias=bias)
    input = torch.randn(3, 1, 24)
    found = form(input, layer.weight, layer.bias)
    torch.testing.assert_close(found, layer(input), atol=1e-6, rtol=1e-6)
    assert found.is_contiguous()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [64, 67])  # of which 3 fill no block
@pytest.mark.parametrize("rows", [2, 5, 8, 9, 32])
def test_products_by_blocks(rows: int, outputs: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "_BLOCK", 4 * 24)
    layer = nn.Linear(24, outputs, bias=bias)
    input = torch.randn(rows, 1, 24)
    assert few_rows.has_blocks(layer.weight)
    found = few_rows.in_blocks(input, layer.weight, layer.bias)
    torch.testing.assert_close(found, layer(input), atol=1e-6, rtol=1e-6)
    assert found.is_contiguous()


def test_which_weights_have_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_rows, "_BLOCK", 16)
    for shape, found in (((32, 8), True), ((31, 8), False), ((16, 100), True)):
        assert few_rows.has_blocks(torch.zeros(shape)) is found
    assert not few_rows.has_blocks(torch.zeros(8, 32).T)


def test_which_rows_go_by_blocks(
    taken: list[int], in_blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, small = nn.Linear(8, 32), nn.Linear(8, 31)
    with ExitStack() as undo:
        few_rows.install((layer, small), SimpleNamespace(stock_rows=1), undo)
        for rows in (1, 4, 5, 32, 33):
            layer(torch.randn(rows, 8))
            small(torch.randn(rows, 8))
        assert (taken, in_blocks) == ([4, 4], [5, 32])
        monkeypatch.setattr(few_rows, "_LARGE", 256)
        layer(torch.randn(1, 8))
        layer(torch.randn(2, 8))
        assert (taken, in_blocks) == ([4, 4], [5, 32, 2])


def test_which_layers_and_rows(taken: list[int]) -> None:
    class Own(nn.Linear):
        pass

    out, inwards, other, hooked = nn.Linear(8, 8), nn.Linear(8, 4), Own(8, 8), nn.Linear(8, 8)
    hooked.forward = lambda input: input  # type: ignore[method-assign]
    half = nn.Linear(8, 8, dtype=torch.bfloat16)
    layers = nn.ModuleList([out, inwards, other, hooked, half])
    with ExitStack() as undo:
        run = SimpleNamespace(stock_rows=1)
        few_rows.install((layers, None), run, undo)
        for layer in layers:
            for rows in (1, 2, 3, 4, 5):
                layer(torch.randn(rows, 8, dtype=torch.bfloat16 if layer is half else torch.float32))
        assert taken == [2, 3, 4, 2, 3]
        run.stock_rows = 3
        for rows in (2, 3, 4):
            out(torch.randn(rows, 8))
        assert taken[5:] == [4]
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Linear, Own, nn.Linear, nn.Linear]
    assert all(set(vars(layer)) - {"forward"} == set(vars(nn.Linear(1, 1))) for layer in layers)


@pytest.mark.parametrize("method", [vlmfix.VCD(), vlmfix.DoLa(exits=(1,)), vlmfix.VHR(num_last_layers=2)])
def test_under_methods_that_add_rows(method: vlmfix.Method, taken: list[int], llava: PreTrainedModel) -> None:
    inputs = families.prompt("llava", llava, (1,))
    kwargs: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    before = families.fingerprint(llava)
    with method(llava):
        found = llava.generate(**inputs, **kwargs)
    assert (set(taken) == set()) is isinstance(method, vlmfix.VHR)
    assert families.fingerprint(llava) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_rows, "helps", lambda: False)
        with method(llava):
            assert torch.equal(llava.generate(**inputs, **kwargs), found)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])  # without and with bias
@pytest.mark.parametrize(("name", "rows"), [("dola", 9), ("vcd", 6)])
def test_exits_by_blocks(name: str, rows: int, family: str, in_blocks: list[int]) -> None:
    """Also of a batch whose rows with those of branches are more than four."""
    model = built(family)
    inputs = families.prompt(family, model, (1, 2, 0))
    kwargs: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    with attached(name, model):
        found = model.generate(**inputs, **kwargs)
    assert set(in_blocks) == {rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_rows, "helps", lambda: False)
        with attached(name, model):
            assert torch.equal(model.generate(**inputs, **kwargs), found)


@pytest.mark.parametrize("kwargs", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
@pytest.mark.filterwarnings("ignore::vlmfix.InactiveMethodWarning")
@pytest.mark.parametrize("method", [vlmfix.DoLa(weight=0), vlmfix.VCD(alpha=0)], ids=["dola", "vcd"])
def test_rows_of_prompts_alone_are_stock(
    method: vlmfix.Method,
    kwargs: dict[str, Any],
    taken: list[int],
    in_blocks: list[int],
    llava: PreTrainedModel,
) -> None:
    """Also in passes over prompts of few tokens, and all their logits."""
    inputs = {"input_ids": torch.arange(12).view(2, 6) + 5, "attention_mask": torch.ones(2, 6).long()}
    with method(llava), torch.no_grad():
        llava.generate(**inputs, max_new_tokens=3, **kwargs)
        llava(**inputs)
    assert taken == in_blocks == []


def test_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows.helps.cache_clear()
    monkeypatch.setattr(few_rows.Path, "read_text", lambda _: "processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert few_rows.helps() is (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())
    few_rows.helps.cache_clear()
    monkeypatch.setattr(few_rows.Path, "read_text", lambda _: "vendor_id\t: GenuineIntel\n")
    assert not few_rows.helps()
    few_rows.helps.cache_clear()
