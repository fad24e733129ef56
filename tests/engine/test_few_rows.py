"""Linear layers that take few rows the other way round: the same products, and the layers as they were."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import vlmfix
from tests.support import families
from vlmfix.engine import few_rows


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """On every machine; the rows of each product that was taken the other way round."""
    rows: list[int] = []
    inner = few_rows.few_rows

    def counted(input: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(input.numel() // input.shape[-1])
        return inner(input, *rest)

    monkeypatch.setattr(few_rows, "few_rows", counted)
    monkeypatch.setattr(few_rows, "helps", lambda: True)
    return rows


@pytest.mark.parametrize("bias", [True, False])
def test_products(bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias)
    input = torch.randn(3, 1, 24)
    found = few_rows.few_rows(input, layer.weight, layer.bias)
    torch.testing.assert_close(found, layer(input), atol=1e-6, rtol=1e-6)
    assert found.is_contiguous()


def test_which_layers_and_rows(taken: list[int]) -> None:
    class Own(nn.Linear):
        pass

    out, inwards, other, hooked = nn.Linear(8, 8), nn.Linear(8, 4), Own(8, 8), nn.Linear(8, 8)
    hooked.forward = lambda input: input  # type: ignore[method-assign]
    half = nn.Linear(8, 8, dtype=torch.bfloat16)
    layers = nn.ModuleList([out, inwards, other, hooked, half])
    with ExitStack() as undo:
        stock = [1]
        few_rows.install((layers, None), lambda: stock[0], undo)
        for layer in layers:
            for rows in (1, 2, 3, 4, 5):
                layer(torch.randn(rows, 8, dtype=torch.bfloat16 if layer is half else torch.float32))
        assert taken == [2, 3, 4, 2, 3]
        stock[0] = 3
        for rows in (2, 3, 4):
            out(torch.randn(rows, 8))
        assert taken[5:] == [4]
    assert ["forward" in vars(layer) for layer in layers] == [False, False, False, True, False]


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


def test_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows.helps.cache_clear()
    monkeypatch.setattr(few_rows.Path, "read_text", lambda _: "processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert few_rows.helps() is torch.backends.mkl.is_available()
    few_rows.helps.cache_clear()
    monkeypatch.setattr(few_rows.Path, "read_text", lambda _: "vendor_id\t: GenuineIntel\n")
    assert not few_rows.helps()
    few_rows.helps.cache_clear()
